"""Networks, files and pipelines that were read wrongly or refused by many lines: the right value, or one line."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

import pfdiff
from pfdiff.cli import main
from pfdiff.engine.errors import InputError
from pfdiff.export.network import Network

WORDS: dict[str, Any] = {"schedule": "linear:1000", "prediction": "eps"}
SHAPE = (1, 8, 8)
FACTORIES = """
import warnings
import torch
from torch import nn
class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)
    def forward(self, x, t):
        return self.layer(x) * t.reshape(-1, 1, 1, 1)
class Branch(nn.Module):
    def forward(self, x, t):
        return x if t[0] > 500 else 2 * x
class InPlace(nn.Module):
    def forward(self, x, t):
        x *= 0.9
        return x
class Halved(nn.Module):
    def forward(self, x, t):
        t /= 2
        return x * t.reshape(-1, 1, 1, 1)
class Random(nn.Module):
    def forward(self, x, t):
        return x + torch.randn_like(x)
class Raises(nn.Module):
    def forward(self, x, t):
        raise KeyError("two\\nlines")
def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(Plain())
def function():
    return lambda x, t: x
def weights():
    return Plain().state_dict()
def nothing():
    return None
def fails():
    raise RuntimeError("two\\nlines")
def traced():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        return torch.jit.trace(Plain(), (torch.zeros(2, 1, 8, 8), torch.zeros(2)))
"""


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("traced", "it is TorchScript"),
        ("Branch", "cannot be exported to ONNX"),
        ("InPlace", "forward writes to its input x"),
        ("Halved", "forward writes to its input t"),
        ("Random", "forward must not turn tensors into Python numbers or draw random ones"),
        ("Raises", "forward failed with x [2, 1, 8, 8], t [2]"),
        ("scripted", "it is TorchScript"),
        ("function", "function() returned function, expected an nn.Module"),
        ("weights", "weights() returned OrderedDict, expected an nn.Module"),
        ("nothing", "nothing() returned NoneType, expected an nn.Module"),
        ("fails", "fails() failed (RuntimeError: two); it is called without arguments"),
    ],
)
def test_a_module_that_cannot_be_exported_is_one_line(
    factory: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nets.py").write_text(FACTORIES)
    options = ["--shape", "1x8x8", "--schedule", "linear:1000", "--prediction", "eps", "--nfe", "2"]
    assert main(["build", f"{tmp_path / 'nets.py'}:{factory}", *options, "-o", str(tmp_path / "x.engine")]) == 2
    out, error = capfd.readouterr()
    assert said in error
    assert len(error.splitlines()) == 1
    assert not out
    assert not (tmp_path / "x.engine").exists()


class Line(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * 0.5


def test_a_shape_of_one_number() -> None:
    for shape in (2, np.int64(2), torch.tensor(2), [2], torch.Size([2])):
        assert Network(Line(), shape=shape, **WORDS).contract.shape == (2,)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("shape", 2.5, "shape 2.5, expected one sample's sizes"),
        ("shape", "1x8x8", "shape '1x8x8', expected one sample's sizes"),
        ("shape", {"a": 1}, "expected one sample's sizes"),
        ("prediction", 3, "prediction: got int, expected a text"),
        ("schedule", 3, "schedule: got int, expected a text"),
        ("time_map", 3, "time_map: got int, expected a text"),
        ("conditions", "label", "conditions: got str, expected values by the names"),
        ("example", [1], "example: got list, expected values by the names"),
        ("prediction", "score", "a score is -eps / sigma"),
        ("prediction", "x_start", "did you mean x0?"),
    ],
)
def test_options_of_another_type_are_one_line(option: str, value: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        Network(Line(), **{"shape": SHAPE, **WORDS, option: value})
    assert said in str(caught.value)


def test_a_denoiser_taken_for_raw_edm_is_told(tmp_path: Path) -> None:
    class D(nn.Module):
        """D(x, sigma), of c_noise = log(sigma) / 4, which a negative sigma breaks."""

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return x * sigma.log().reshape(-1, 1, 1, 1)

    network = Network(D(), shape=SHAPE, schedule="edm", prediction="edm")
    with pytest.raises(InputError, match=r"the source returns NaN.*give schedule='edm' and prediction='x0'"):
        network.write(tmp_path)


class Masked(nn.Module):
    """Attention in which the first row sees nothing: zeros in PyTorch, 0 / 0 in ONNX's softmax."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        rows = x.flatten(2)
        hidden = torch.zeros(8, 8, dtype=x.dtype).masked_fill(torch.arange(8)[:, None] == 0, float("-inf"))
        return torch.nn.functional.scaled_dot_product_attention(
            *(rows.reshape(-1, 1, 8, 8),) * 3, attn_mask=hidden
        ).reshape(x.shape)


class Softplus(nn.Module):
    """log(exp(100 x) + 1), which ONNX computes as it is written, and PyTorch without the large power."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.logaddexp(x * 100, torch.zeros_like(x)) * 0.01


class Sum(nn.Module):
    """A sum of 64 numbers, which ends above 65,504."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x + (x.abs() * 4000).sum((1, 2, 3), keepdim=True) * 1e-6


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("module", [Masked, Softplus])
def test_a_graph_that_is_nan_where_its_source_is_not_is_told(
    module: type[nn.Module], precision: str, tmp_path: Path
) -> None:
    says = rf"the source is finite, the exported {precision} graph is not: NaN or infinity .*write that part of forward"
    with pytest.raises(InputError, match=says):
        Network(module(), shape=SHAPE, **WORDS).write(tmp_path, precision)
    assert not list(tmp_path.iterdir())


def test_a_source_that_is_too_large_for_a_precision_is_told(tmp_path: Path) -> None:
    network = Network(Sum(), shape=SHAPE, **WORDS)
    network.write(tmp_path)
    with pytest.raises(InputError, match=r"PyTorch at fp16 returns NaN or infinity.*build with bf16 or fp32$"):
        network.write(tmp_path, "fp16")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("weights.safetensors", "file.py:factory"),
        ("weights.pt", "file.py:factory"),
        ("fasion", "did you mean fashion"),
        ("", "network '': expected a path"),
        ("nets.py", "nets.py:factory"),
        ("nets.py:Plian", "did you mean Plain?"),
    ],
)
def test_a_network_by_a_name_that_is_none(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(FACTORIES)
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        Network(text, **WORDS)
    assert "\n" not in str(caught.value)


def test_predictions_by_diffusers_names() -> None:
    for name, ours in (("epsilon", "eps"), ("sample", "x0"), ("v_prediction", "v")):
        assert Network("fashion", prediction=name).contract.prediction == ours


# What is left out.
class Optional(nn.Module):
    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        return x * 0.5 if y is None else x * y.reshape(-1, 1, 1, 1)


def test_an_optional_input_is_fed_or_told(tmp_path: Path) -> None:
    lines: list[str] = []
    settings: dict[str, Any] = {"solver": "ddim", "grid": "uniform", "progress": lines.append}
    pfdiff.build(Network(Optional(), shape=SHAPE, **WORDS), 2, **settings, out=tmp_path / "x.engine").close()
    assert any("optional y keeps its default" in line and "--condition y:" in line for line in lines)
    fed = Network(Optional(), shape=SHAPE, **WORDS, conditions={"y": pfdiff.Condition("y", "float32")})
    assert fed.contract.inputs == ("x", "t", "y")
    assert not fed.notes


# ONNX files.
def test_a_file_that_draws_random_numbers_is_refused(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1, 8, 8]) for name in ("x", "out")]
    time = helper.make_tensor_value_info("t", TensorProto.FLOAT, ["n"])
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["noise"], "dropout"),
        helper.make_node("Add", ["x", "noise"], ["out"]),
    ]
    graph = helper.make_graph(nodes, "g", [ends[0], time], [ends[1]])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "net.onnx")
    with pytest.raises(InputError, match="RandomNormalLike 'dropout' draws random numbers"):
        Network(tmp_path / "net.onnx", **WORDS)


# Directions.
class Gaussian(nn.Module):
    """The exact velocity of data N(0, 0.2^2) with noise at t = 1, as it is or the other way round."""

    def __init__(self, direction: str = "") -> None:
        super().__init__()
        self.direction = direction

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.reshape(-1, 1, 1, 1)
        t = 1 - t if "time" in self.direction else t
        out = x * (t - 0.04 * (1 - t)) / (t**2 + 0.04 * (1 - t) ** 2)
        return -out if "sign" in self.direction else out


@pytest.mark.parametrize("direction", ["time", "sign", "time and sign"])
def test_a_network_that_runs_the_other_way_is_warned_of(direction: str, tmp_path: Path) -> None:
    words: dict[str, Any] = {"shape": SHAPE, "schedule": "flow"}
    with pytest.warns(UserWarning, match="seems to run the other way"):
        Network(Gaussian(direction), **words, prediction="flow").write(tmp_path)


def test_a_network_that_is_described_rightly_is_not(tmp_path: Path) -> None:
    words: dict[str, Any] = {"shape": SHAPE, "schedule": "flow"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Network(Gaussian(), **words, prediction="flow").write(tmp_path)
        Network(Gaussian("time and sign"), **words, prediction="flow", time_map="1-t").write(tmp_path)
        Network(Gaussian("sign"), **words, prediction="-flow").write(tmp_path)
        Network("fashion").write(tmp_path)


class Points(nn.Module):
    """The exact velocity, noise at t = 1, of two points at 1 and -1: zero is no such data."""

    points: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("points", torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.reshape(-1, 1).clamp(1e-3, 1.0)
        away = (x[:, None] - (1 - t[:, None]) * self.points).square().sum(-1)
        return (x - torch.softmax(-away / (2 * t**2), 1) @ self.points) / t


class Tutorial(nn.Module):
    """The same with time 0 at noise and the target data - noise."""

    def __init__(self) -> None:
        super().__init__()
        self.points = Points()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return -self.points(x, 1 - t)


def test_points_beside_zero_are_no_reason_to_warn(tmp_path: Path) -> None:
    words: dict[str, Any] = {"shape": (2,), "schedule": "flow", "prediction": "flow"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Network(Points(), **words).write(tmp_path)
        Network(Tutorial(), **words, time_map="1-t").write(tmp_path)


class Denoiser(nn.Module):
    """The exact D(x, sigma) of data N(0, 0.5^2); raw: the F of the same data, which is 0, and some error."""

    def __init__(self, *, raw: bool) -> None:
        super().__init__()
        self.raw = raw

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.reshape(-1, 1, 1, 1)
        return 0.03 * x.roll(1, 3) if self.raw else x * 0.25 / (s**2 + 0.25)


def test_a_denoiser_that_is_taken_for_a_raw_f_is_warned_of(tmp_path: Path) -> None:
    words: dict[str, Any] = {"shape": SHAPE, "schedule": "edm", "prediction": "edm"}
    with pytest.warns(UserWarning, match=r"a denoiser D\(x, sigma\) is schedule edm with prediction x0"):
        Network(Denoiser(raw=False), **words).write(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Network(Denoiser(raw=True), **words).write(tmp_path)


def test_whole_times_on_a_continuous_schedule_are_asked_for_as_whole(tmp_path: Path) -> None:
    class Whole(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            if t.dtype != torch.int64:
                raise TypeError("int64, please")
            return x * 0.5

    Network(Whole(), shape=SHAPE, schedule="vp", prediction="eps", time_scale=1000.0).write(tmp_path)


def test_a_default_build_of_a_network_with_a_condition_that_only_callers_know(tmp_path: Path) -> None:
    class Labelled(nn.Module):
        def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return x * 0.5 + y.reshape(-1, 1, 1, 1)

    label = pfdiff.Condition("y", "int64", low=0, high=3)
    network = Network(Labelled(), shape=SHAPE, **WORDS, conditions={"y": label})
    with pfdiff.build(network, 4, out=tmp_path / "x.engine") as engine:
        assert engine.sample(seeds=[0], y=1).shape == (1, *SHAPE)
