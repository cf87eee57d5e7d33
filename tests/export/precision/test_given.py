"""What a user gives to calibrate with: values of conditions, and a policy's observations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import save_file
from torch import Tensor, nn

import pfdiff
from pfdiff.cli import main
from pfdiff.engine.artifact import OBSERVATION_ENCODER, read_artifact
from pfdiff.engine.contract.condition import Condition
from pfdiff.engine.contract.contract import Contract
from pfdiff.engine.contract.policy import Observed, PolicyContract
from pfdiff.engine.errors import InputError
from pfdiff.export.precision import tasks
from pfdiff.export.precision.calibration.given import given_values
from pfdiff.export.precision.trajectory import CALIBRATION_SEED, CHECK_SEED, Trajectories

CONTRACT = Contract(
    *("net", (4,), "linear:1000", "eps"),
    conditions=(Condition("picture", "float32", (2, 3)), Condition("text", "float32", (5,)), Condition("n", "int64")),
)
POLICY = PolicyContract(
    ("picture",), (Observed("arm", (2, 3)), Observed("camera", (2, 1, 4))), (1.0,) * 4, (0.0,) * 4, 0, 1
)
ROWS = np.arange(24, dtype=np.float32).reshape(4, 2, 3)


def given(values: Any, policy: PolicyContract | None = None, encoded: tuple[str, ...] = ()) -> Any:
    return given_values(values, CONTRACT, policy, encoded, ("a prompt",))


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_a_file_of_names_is_the_mapping(tmp_path: Path, ending: str) -> None:
    arrays = {"picture": ROWS, "n": np.array([3, 4])}
    path = tmp_path / f"values.{ending}"
    np.savez(path, **arrays) if ending == "npz" else save_file(arrays, path)
    read, meant = given(path), given(arrays)
    assert set(read.conditions) == {"picture", "n"}
    np.testing.assert_array_equal(read.conditions["picture"], ROWS)
    assert read.conditions["n"].dtype == np.int64
    assert read.digest == meant.digest != given({**arrays, "n": np.array([3, 5])}).digest
    assert given(None).digest is None
    assert given({"picture": ROWS[0]}).conditions["picture"].shape == (1, 2, 3)  # one value for all


@pytest.mark.parametrize(
    ("values", "policy", "encoded", "said"),
    [
        ({"depth": ROWS}, None, (), "unknown condition 'depth'; this network takes picture, text, n"),
        ({"picture": ROWS[:, :1]}, None, (), r"'picture': got shape \[4, 1, 3\]"),
        ({"picture": ROWS * np.nan}, None, (), "got NaN"),
        ({"text": np.zeros(5)}, None, ("text",), "text is made of prompts; give them by calibrate_prompts"),
        ({"arm": ROWS}, POLICY, (), "observation 'camera' is missing; this policy observes arm, camera"),
        ({"arm": ROWS, "camera": np.zeros((3, 2, 1, 4))}, POLICY, (), r"observations of \[3, 4\] rows"),
        (
            {"arm": ROWS, "camera": np.zeros((4, 2, 1, 4)), "picture": ROWS},
            POLICY,
            (),
            "got both observations and pict",
        ),
        (3, None, (), r"got 3, expected arrays by name, or a file \(.npy, .npz, .safetensors\)"),
        ("none.txt", None, (), r"ends in '.txt', expected .npy, .npz, .safetensors"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    values: Any, policy: PolicyContract | None, encoded: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InputError, match=said) as error:
        given(values, policy, encoded)
    assert str(error.value).startswith("calibrate_conditions: ")
    assert "\n" not in str(error.value)


def test_a_nameless_array_is_of_the_only_thing_without_values(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", ROWS)
    with pytest.raises(InputError, match="does not say whether it is picture or text or n"):
        given(tmp_path / "rows.npy")
    alone = Contract("net", (4,), "linear:1000", "eps", conditions=(Condition("picture", "float32", (2, 3)),))
    default = Condition("picture", "float32", (2, 3), default=0.0)
    for one in (alone, replace(alone, conditions=(default,))):
        found = given_values(tmp_path / "rows.npy", one, None, (), ())
        np.testing.assert_array_equal(found.conditions["picture"], ROWS)
    np.savez(tmp_path / "empty.npz")
    with pytest.raises(InputError, match=r"holds no arrays"):
        given(tmp_path / "empty.npz")


# A network with a picture that has no default, as beside a ControlNet.
PICTURED = """<ir_version: 10, opset_import: ["" : 21]> net (float[b,16] x, float[b] t, float[b,16] picture) =>
(float[b,16] out) { both = Add(x, picture)  hidden = MatMul(both, a)  bent = Tanh(hidden)  out = MatMul(bent, c) }"""
SAMPLER = ["--solver", "ddim", "--grid", "trailing", "--backend", "onnxruntime"]


def pictured(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    model = onnx.parser.parse_model(PICTURED)
    for name in ("a", "c"):
        values = (generator.standard_normal((16, 16)) / 4).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx"


def test_a_condition_without_default_is_calibrated_on_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "seeds_for", lambda *given: 4)
    words = ["build", str(pictured(tmp_path)), "--nfe", "2", "--schedule", "linear:1000", "--prediction", "eps"]
    words += [*SAMPLER, "--precision", "int8", "--quantise-error", "0.5", "-o", str(tmp_path / "e")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "condition 'picture' has no default" in said
    assert "--calibrate-conditions FILE" in said
    pictures = 40 * np.random.default_rng(1).standard_normal((6, 16)).astype(np.float32)
    np.save(tmp_path / "pictures.npy", pictures)
    assert main([*words, "--calibrate-conditions", str(tmp_path / "pictures.npy")]) == 0
    record = read_artifact(tmp_path / "e").provenance["precision_record"]
    assert record["layers"] == {"linear layer": [2, 2]}
    # The first layer's input is x + picture: its range is that of the pictures, far beyond that of noise.
    constants = {one.name: one for one in onnx.load(tmp_path / "e" / "network.onnx").graph.initializer}
    (scale,) = (numpy_helper.to_array(one) for name, one in constants.items() if name == "both_8_scale")
    assert float(scale) * 255 > 0.5 * np.ptp(pictures)
    before = (tmp_path / "e" / "engine.json").stat().st_mtime_ns
    assert main([*words, "--calibrate-conditions", str(tmp_path / "pictures.npy")]) == 0
    assert (tmp_path / "e" / "engine.json").stat().st_mtime_ns == before  # the same values: nothing to do
    # Rows that check, beyond all that calibrated: what is clipped is said in a line.
    np.save(tmp_path / "wider.npy", pictures * np.array([1, 3])[np.arange(6) % 2, None])
    clipped = [*words[:-3], "9", "-o", str(tmp_path / "g"), "--calibrate-conditions", str(tmp_path / "wider.npy")]
    assert main(clipped) == 0
    assert "% of 'both' on other seeds lie beyond all that calibration saw" in capsys.readouterr().out
    assert main([*words[:-6], "--precision", "fp16", "--calibrate-conditions", "x.npy", "-o", str(tmp_path / "f")]) == 2
    assert "--calibrate-conditions with precision fp16, which is not calibrated" in capsys.readouterr().err


# A policy whose observations make its conditions.
class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(4 + 8, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor, t: Tensor, cache: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(torch.cat((x, cache[:, None].expand(-1, 3, -1)), 2)))
        return self.outer(hidden) + 0.2 * torch.cos(0.003 * t)[:, None, None]


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.arm, self.camera = nn.Linear(6, 16), nn.Conv2d(1, 4, 3, padding=1)
        self.last = nn.Linear(32, 8)

    def forward(self, arm: Tensor, camera: Tensor) -> Tensor:
        seen = torch.relu(self.camera(camera.flatten(0, 1))).mean((2, 3)).reshape(len(arm), -1)
        return self.last(torch.cat((torch.tanh(self.arm(arm.flatten(1))), seen, seen), 1))


def observed(rows: int, seed: int) -> Mapping[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    arm = generator.standard_normal((rows, 2, 3)).astype(np.float32)
    return {"arm": arm, "camera": generator.random((rows, 2, 1, 8, 8), dtype=np.float32)}


@pytest.mark.parametrize("target", ["", "sm89"])
def test_an_observation_encoder_is_quantised_by_the_actions_that_it_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    if target:
        pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(tasks, "seeds_for", lambda *given: 6)
    policy = pfdiff.Policy({"arm": (2, 3), "camera": (2, 1, 8, 8)}, Encoder(), scale=(2.0, 1.0, 1.0, 0.5))
    words: dict[str, Any] = {"shape": (3, 4), "schedule": "linear:1000", "prediction": "eps", "name": "head"}
    words |= {"conditions": {"cache": Condition("cache", "float32", (8,))}, "policy": policy}
    build: dict[str, Any] = {"grid": "uniform", "backend": "onnxruntime"}
    exact = pfdiff.build(pfdiff.Network(Head(), **words), 2, "ddim", **build, out=tmp_path / "exact")
    build |= {"target": target or (), "precision": "int8", "quantise_error": 0.1, "out": tmp_path / "e"}
    network = pfdiff.Network(Head(), **words)
    with pytest.raises(InputError, match=r"'cache' has no default .* or a policy's observations \(calibrate_cond"):
        pfdiff.build(network, 2, "ddim", **build)
    lines: list[str] = []
    build |= {"calibrate_conditions": observed(8, 0), "progress": lines.append}
    with pfdiff.build(network, 2, "ddim", **build) as engine, exact:
        seen = observed(5, 7)
        wanted = exact.sample(seeds=range(5), observation=seen).numpy()
        found = engine.sample(seeds=range(5), observation=seen).float().numpy()
    artifact = read_artifact(tmp_path / "e")
    record = artifact.provenance["precision_record"]["observation_encoder"]
    assert record["layers"]["linear layer"][0] == 2, lines
    assert record["samples"]["NFE 2"]["added"] <= record["samples"]["NFE 2"]["bound"] == 0.1
    model = onnx.load(tmp_path / "e" / OBSERVATION_ENCODER)
    assert "QuantizeLinear" in {one.op_type for one in model.graph.node}
    assert artifact.contracts[OBSERVATION_ENCODER].precision == "fp32"
    assert 0 < np.sqrt(np.mean(((found - wanted) / (2, 1, 1, 0.5)) ** 2)) < 0.5  # of about 100
    if target:
        assert len(list((tmp_path / "e" / "plans").glob("*.plan"))) == 2


def test_classes_are_calibrated_on_whatever_the_default() -> None:
    """A default is one class: what the layers see of the others would be clipped."""
    conditions = (
        Condition("label", "int64", low=0, high=4, default=1),
        Condition("text", "float32", (2,), default=0.5),
    )
    contract = Contract("net", (4,), "linear:1000", "eps", conditions=conditions)
    labels, texts = Trajectories.of(contract, 0, 7).conditions
    assert labels.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert (texts == 0.5).all()
    named = Condition("label", "int64", low=0, high=2, labels=("cat", "dog"), default=2)  # 2: no class
    (labels,) = Trajectories.of(replace(contract, conditions=(named,)), 0, 4).conditions
    assert labels.tolist() == [0, 1, 2, 0]
    many = Condition("label", "int64", low=0, high=1000, default=1000)
    (labels,) = Trajectories.of(replace(contract, conditions=(many,)), 0, 24).conditions
    assert sorted(labels.tolist()) == [*range(23), 1000]
    labels, _ = Trajectories.of(contract, 0, 3, tables={"label": np.array([2])}).conditions
    assert labels.tolist() == [2, 2, 2]  # what is given is meant


@pytest.mark.parametrize("first", [CALIBRATION_SEED, CHECK_SEED])
@pytest.mark.parametrize(
    ("default", "count", "expected"),
    [(1000, 2, [0, 1000]), (2, 3, [0, 1, 2]), (7, 2, [0, 7]), (1000, 1, [1000]), (None, 2, [0, 1]), (None, 1, [0])],
)
def test_of_few_seeds_one_has_the_default(first: int, default: int | None, count: int, expected: list[int]) -> None:
    """A slow network is calibrated on 2 seeds: without the default the samples without a label would be clipped."""
    many = Condition("label", "int64", low=0, high=1000, default=default)
    contract = Contract("net", (4,), "linear:1000", "eps", conditions=(many,))
    (labels,) = Trajectories.of(contract, first, count).conditions
    assert sorted(labels.tolist()) == expected
