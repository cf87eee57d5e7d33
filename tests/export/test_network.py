"""Networks in every form: digests, words that do not fit, evaluation, the shipped one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfdiff.engine.contract.condition import Condition
from pfdiff.engine.errors import InputError
from pfdiff.export.network import Network

from ..small.modules import SHAPE, WORDS, Labelled, LikeDiffusers, Mixing, Plain, check_written


def test_the_digest_follows_content_only() -> None:
    def digest(module: nn.Module, **more: Any) -> str:
        return Network(module, shape=SHAPE, **{**WORDS, **more}).digest

    first = digest(Plain())
    assert first == digest(Plain())
    assert len(first) == 64
    moved = Plain()
    with torch.no_grad():
        moved.mix.weight[0, 0] += 1e-6
    assert first != digest(moved)
    assert first != digest(Plain(), prediction="v")
    assert first != digest(Plain(), schedule="cosine:1000")
    dilated = Plain()
    dilated.mix.dilation = (2, 2)
    assert first != digest(dilated)
    assert first == digest(Plain().train())


# Bad modules and words.
class NoTime(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class NoTensor(Mixing):
    def forward(self, x: Tensor, t: Tensor) -> Any:
        return SimpleNamespace(count=3)


@pytest.mark.parametrize(
    ("source", "words", "message"),
    [
        (Plain(), {"shape": None}, "shape is missing; give shape="),
        (Plain(), {"shape": (3, 4, 4)}, r"forward failed with x \[2, 3, 4, 4\].*correct shape="),
        (Plain(), {"shape": (2, 0, 4)}, "expected a tuple of integers"),
        (Plain(), {"schedule": None}, "schedule is missing"),
        (Plain(), {"schedule": "sigmoid:9"}, "sigmoid"),
        (Plain(), {"prediction": None}, "what it predicts is missing"),
        (
            Plain(),
            {"schedule": None, "prediction": None, "shape": None},
            r"the schedule, what it predicts and the sample's shape are missing; give .* and shape= \(--shape",
        ),
        (Plain(), {"prediction": "sigmoid"}, "expected one of eps, x0, v, flow, edm"),
        (Plain(), {"prediction": "score"}, "a score is -eps / sigma"),
        (Plain(), {"time_scale": -1.0}, "time_scale"),
        (Plain(), {"time_dtype": "int8"}, "expected one of float32, int64"),
        (Plain(), {"time": "when"}, r"no parameter 'when' in forward\(x, t\)"),
        (Plain(), {"conditions": {"label": Condition("label", "int64")}}, "no parameter 'label'"),
        (Plain(), {"conditions": {"t2": Condition("t3", "int64")}}, "use one name"),
        (Plain(), {"learned_sigma": True}, r"forward returns|learned"),
        (LikeDiffusers(), {}, r"needs 'encoder_hidden_states'; say what it is with conditions="),
        (LikeDiffusers(), {"conditions": {"encoder_hidden_states": torch.zeros(2, 3, 5).double()}}, "torch.float64"),
        (NoTime(), {}, r"takes no x and time; expected forward\(x, t"),
        (NoTensor(), {}, "returns no tensor"),
        (42, {}, "got int, expected an nn.Module, a pipeline or a path ending in .onnx"),
        (
            "faces",
            {},
            "not known; did you mean gates; expected a path ending in .onnx, file.py:factory, a diffusers folder, "
            "owner/name of the Hugging Face hub, or a shipped netw",
        ),
        ("model.ckpt", {}, "not known"),
        (Plain(), {"lora": "style.safetensors:0.8"}, r"got lora=style.safetensors:0.8 \(--lora\), which belongs"),
        ("fashion", {"controlnet": "canny"}, r"got controlnet=canny \(--controlnet\), which belongs to a pipeline"),
        (Plain(), {"controlnet": ["canny", "depth"]}, "controlnet: got 2 in a list, expected one"),
        (Plain(), {"controlnet": Plain()}, "controlnet: got Plain, expected a folder that save_pretrained wrote"),
    ],
)
def test_bad_words_are_one_line(source: Any, words: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Network(source, **{"shape": SHAPE, **WORDS, **words})
    assert "\n" not in str(caught.value)


def test_evaluate_refuses_wrong_inputs() -> None:
    network = Network(Labelled(), shape=SHAPE, **WORDS)
    x = torch.zeros(2, *SHAPE)
    for values, given, message in (
        (x[:, :1], {"y": 1}, "x is"),
        (x, {}, "condition 'y' is missing"),
        (x, {"y": 7}, "expected values in 0..6"),
        (x, {"y": 1, "z": 1}, "unknown condition 'z'; this network takes y"),
    ):
        with pytest.raises(InputError, match=message):
            network.evaluate(values, 3.0, given)
    assert network.evaluate(x, 3.0, {"y": 2}).shape == x.shape


def test_the_shipped_network(tmp_path: Path) -> None:
    network = Network("fashion")
    contract = network.contract
    assert (contract.shape, contract.schedule, contract.prediction) == ((1, 28, 28), "linear:1000", "v")
    assert [one.name for one in contract.conditions] == ["label"]
    assert network.digest == Network("fashion").digest
    check_written(network, tmp_path, label=["bag", "coat", "shirt"])
