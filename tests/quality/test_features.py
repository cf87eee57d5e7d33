"""Extractors against the networks that they run, called plainly; one line for what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, save_model
from torch import nn

from pfdiff import InputError
from pfdiff.export.zoo.fashion_classifier import load_classifier
from pfdiff.quality.distances.features import BATCH, Extractor, extractor, with_whole_path

PIXELS = np.random.default_rng(0).integers(0, 256, (BATCH + 3, 28, 28, 1), np.uint8)
FACTORIES = """
import torch
from torch import nn

class Both(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)), torch.cat([x, 2 * x, x, x, x, x, x, x, x], 1)

class Flat(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))

def both():
    return Both()

def flat():
    return Flat()

def four():
    return nn.Identity()

def broken():
    return nn.Linear(3, 3)
"""


@pytest.fixture
def judge(tmp_path: Path) -> str:
    (tmp_path / "judge.py").write_text(FACTORIES)
    return str(tmp_path / "judge.py")


def write_onnx(path: Path, outputs: tuple[str, ...] = ("flat", "maps"), kind: int = TensorProto.FLOAT) -> None:
    """flat [n, 16] and other [n, 16]: x flattened; maps [n, 1, 4, 4]: twice x."""
    x = helper.make_tensor_value_info("x", kind, ["n", 1, 4, 4])
    made = {
        "flat": ([helper.make_node("Flatten", ["x"], ["flat"])], ["n", 16]),
        "other": ([helper.make_node("Flatten", ["x"], ["other"])], ["n", 16]),
        "maps": ([helper.make_node("Add", ["x", "x"], ["maps"])], ["n", 1, 4, 4]),
    }
    nodes = [node for name in outputs for node in made[name][0]]
    values = [helper.make_tensor_value_info(name, kind, made[name][1]) for name in outputs]
    graph = helper.make_graph(nodes, "judge", [x], values)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def test_the_shipped_classifier_gives_its_own_features_and_maps() -> None:
    model = load_classifier()
    x = torch.from_numpy(PIXELS[..., 0])[:, None].float() / 127.5 - 1
    with torch.inference_mode():
        pooled, maps = model.features(x), model.layers[:11](x)
    found = extractor("fashion")(PIXELS)
    assert found.spatial is not None
    np.testing.assert_allclose(found.pooled, pooled.numpy(), atol=2e-5)
    np.testing.assert_allclose(found.spatial, maps[:, :7].reshape(len(x), -1).numpy(), atol=2e-5)
    assert found.pooled.shape == (len(PIXELS), 128)
    assert found.spatial.shape == (len(PIXELS), 7 * 49)


def test_a_module_with_and_without_maps(judge: str) -> None:
    both, flat = (extractor(f"{judge}:{name}", scale=(0, 1))(PIXELS) for name in ("both", "flat"))
    mean = PIXELS.mean((1, 2)) / 255
    np.testing.assert_allclose(both.pooled, mean, atol=1e-5)
    np.testing.assert_allclose(flat.pooled, mean, atol=1e-5)
    assert flat.spatial is None
    assert both.spatial is not None
    assert both.spatial.shape == (len(PIXELS), 7 * 784)
    np.testing.assert_allclose(both.spatial[:, 784:1568], PIXELS.reshape(len(PIXELS), -1) / 127.5, atol=1e-5)


def test_an_onnx_network_with_maps_and_a_named_output(tmp_path: Path) -> None:
    pixels = PIXELS[:5, :4, :4]
    expected = pixels.reshape(5, 16) / 127.5 - 1
    write_onnx(tmp_path / "one.onnx")
    found = extractor(str(tmp_path / "one.onnx"))(pixels)
    np.testing.assert_allclose(found.pooled, expected, atol=1e-6)
    assert found.spatial is not None
    np.testing.assert_allclose(found.spatial, 2 * expected, atol=1e-6)
    write_onnx(tmp_path / "two.onnx", ("flat", "other"))
    named = extractor(f"{tmp_path / 'two.onnx'}:other")
    assert named.name == "two.onnx:other"
    np.testing.assert_allclose(named(pixels).pooled, expected, atol=1e-6)


def test_the_digest_names_weights_output_and_scale(tmp_path: Path, judge: str) -> None:
    write_onnx(tmp_path / "two.onnx", ("flat", "other"))
    ways = [
        extractor("fashion"),
        extractor(f"{judge}:flat"),
        extractor(f"{judge}:both"),
        extractor(f"{judge}:flat", scale=(0, 1)),
        extractor(f"{tmp_path / 'two.onnx'}:flat"),
        extractor(f"{tmp_path / 'two.onnx'}:other"),
        extractor(nn.Flatten()),
    ]
    assert len({one.digest for one in ways}) == len(ways)
    assert extractor(f"{judge}:flat").digest == ways[1].digest


class Branch(nn.Module):
    """A block whose inner convolution is what sFID looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 9, 3, stride=9)
        self.rest = nn.Conv2d(9, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest(torch.relu(self.conv(x)))


class InceptionLike(nn.Module):
    """The interface of inception-2015-12-05.pt with its resizing, and four layers in place of its own."""

    def __init__(self, offset: float = 128.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential()
        self.layers.add_module("conv", nn.Conv2d(3, 4, 5, stride=4))
        self.layers.add_module("mixed_6", Branch())
        self.layers.add_module("pool", nn.AdaptiveAvgPool2d(1))
        self.offset = offset

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        n, channels, height, width = img.shape
        x = img.float()
        theta = torch.eye(2, 3)
        theta[0, 2] += theta[0, 0] / width - theta[0, 0] / 299
        theta[1, 2] += theta[1, 1] / height - theta[1, 1] / 299
        repeated = theta.unsqueeze(0).repeat([n, 1, 1])
        grid = nn.functional.affine_grid(repeated, [n, channels, 299, 299], align_corners=False)
        x = nn.functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        x = (x - self.offset) / 128.0
        features = self.layers(x).reshape(n, -1)
        return features if return_features else features.softmax(1)


def save_script(module: nn.Module, path: Path) -> str:
    torch.jit.script(module).save(str(path))
    return f"inception:{path}"


needs_script = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # the format that the file has


@needs_script
@pytest.mark.parametrize("channels", [1, 3])
def test_inception_is_walked_to_its_own_answer(tmp_path: Path, channels: int) -> None:
    network = InceptionLike().eval()
    pixels = np.random.default_rng(1).integers(0, 256, (3, 20, 30, channels), np.uint8)
    x = torch.from_numpy(np.repeat(pixels, 3 // channels, axis=3)).permute(0, 3, 1, 2)
    seen: list[Any] = []
    network.get_submodule("layers.mixed_6.conv").register_forward_hook(
        lambda module, given, answer: seen.append(answer)
    )
    with torch.inference_mode():
        expected = network(x, return_features=True)
    found = extractor(save_script(InceptionLike(), tmp_path / "inception.pt"))
    assert (found.name, found.fid) == ("inception:inception.pt", False)  # its weights are not Inception's
    features = found(pixels)
    assert features.spatial is not None
    np.testing.assert_allclose(features.pooled, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(features.spatial, seen[0][:, :7].reshape(3, -1).numpy(), atol=1e-5)


@needs_script
def test_inception_alone_is_the_file_in_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = tmp_path / "pfdiff" / "inception-2015-12-05.pt"
    said = refusal("inception")
    assert f"there is no file '{place}'; expected https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/" in said
    place.parent.mkdir()
    named = save_script(InceptionLike(), place)
    assert extractor("inception").digest == extractor(named).digest
    assert with_whole_path("inception") == named


@needs_script
def test_another_network_is_not_taken_for_inception(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its layers do not add up to its answer"):
        extractor(save_script(InceptionLike(offset=100.0), tmp_path / "other.pt"))
    with pytest.raises(InputError, match=r"expected the TorchScript file inception-2015-12-05\.pt"):
        extractor(save_script(nn.ReLU(), tmp_path / "relu.pt"))
    (tmp_path / "text.pt").write_text("no archive")
    with pytest.raises(InputError, match=r"expected the TorchScript file inception-2015-12-05\.pt"):
        extractor(f"inception:{tmp_path / 'text.pt'}")


def refusal(source: str | nn.Module, pixels: np.ndarray = PIXELS[:2], scale: tuple[float, float] = (-1, 1)) -> str:
    with pytest.raises(InputError) as caught:
        extractor(source, scale=scale)(pixels)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_is_one_clear_line(tmp_path: Path, judge: str) -> None:
    assert "unknown features 'vgg'; expected fashion, inception:FILE" in refusal("vgg")
    assert "there is no file 'none.pt'; expected https://nvlabs" in refusal("inception:none.pt")
    assert "there is no file 'gone.onnx'" in refusal("gone.onnx")
    assert "has no function 'nine'" in refusal(f"{judge}:nine")
    assert "gave [2, 1, 28, 28] for 2 pictures, expected [n, d]" in refusal(f"{judge}:four")
    assert "refuse pictures of 28x28x1 (height, width, channels): mat1 and mat2" in refusal(f"{judge}:broken")
    assert "take pictures of 28x28x1, got 28x28x3" in refusal("fashion", np.repeat(PIXELS[:2], 3, axis=3))
    assert "scale 1,0, expected two ascending numbers" in refusal("fashion", scale=(1, 0))
    write_onnx(tmp_path / "two.onnx", ("flat", "other"))
    assert "choose the output [n, d] with two.onnx:OUTPUT" in refusal(str(tmp_path / "two.onnx"))
    write_onnx(tmp_path / "half.onnx", kind=TensorProto.FLOAT16)
    assert "takes x tensor(float16), expected one float32 input" in refusal(str(tmp_path / "half.onnx"))
    (tmp_path / "text.onnx").write_text("no model")
    assert "text.onnx" in refusal(str(tmp_path / "text.onnx"))


def test_features_that_are_not_finite_are_refused() -> None:
    def run(pixels: np.ndarray) -> tuple[torch.Tensor, None]:
        return torch.full((len(pixels), 2), float("nan")), None

    with pytest.raises(InputError, match="gave NaN or infinity"):
        Extractor("mine", "0", run)(PIXELS[:2])


def test_a_class_that_is_called_inception_is_another_network() -> None:
    named = type("inception", (nn.Flatten,), {})
    found = extractor(named())
    assert (found.name, found.fid) == ("inception", False)
