"""Exporting modules: equal to the source, silent, repeatable, of the right dtypes; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from pfdiff.engine.contract.contract import Contract
from pfdiff.engine.errors import InputError
from pfdiff.export.check import OnnxRun, TrialInputs, check_export, probe_times, trial_inputs
from pfdiff.export.network import Network

SHAPE = (2, 4, 4)


class Small(nn.Module):
    """A convolution, a normalisation and a time embedding whose frequencies must stay float32."""

    rates: Tensor

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("rates", torch.linspace(0.01, 1.0, 4))
        self.embed = nn.Linear(8, 8)
        self.into = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Conv2d(8, outputs, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * self.rates
        y = self.norm(self.into(x)) + self.embed(torch.cat((angles.sin(), angles.cos()), 1))[:, :, None, None]
        return self.out(self.drop(nn.functional.silu(y)))


class Joined(nn.Module):
    """What diffusers' networks do to the batch: x and t are joined before anything says that both have the same."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(1, 4)
        self.mix = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale, shift = self.embed(t[:, None] / 1000).view(x.shape[0], 2, -1).chunk(2, dim=1)
        if x.shape[0] >= 64:
            x = x.contiguous()
        return (self.mix(x) * scale.reshape(-1, 2, 1, 1) + shift.reshape(-1, 2, 1, 1)).squeeze(1)


class Mixed(nn.Module):
    """Joins features in the network's precision with float32 angles, which torch allows and ONNX does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into = nn.Conv2d(2, 4, 1)
        self.mix = nn.Linear(6, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = torch.stack(((t / 100).cos(), (t / 100).sin()), 1)
        joined = torch.cat((self.into(x).mean((2, 3)), angles), 1)
        return x + self.mix(joined.to(x.dtype))[:, :, None, None]


class Broken(nn.Module):
    """One thing wrong in forward, chosen by name."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.mix = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y = self.mix(x) * t[:, None, None, None].cos()
        if self.how == "batch":
            return y.reshape(2, 2, 4, 4)
        if self.how == "branch":
            return y if t[0] > 500 else -y
        if self.how == "random":
            return y + torch.randn_like(y)
        if self.how == "frozen time":
            return y * float(t.detach().numpy().max())
        if self.how == "nan":
            return y / torch.zeros_like(y)
        if self.how == "overflow":
            return (self.mix(x * 300) * 300).abs() * 1e3
        return y


def network(module: nn.Module, **words: Any) -> Network:
    return Network(module, shape=SHAPE, schedule="linear:1000", prediction="eps", **words)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Small, Path]:
    module = Small()
    folder = tmp_path_factory.mktemp("small")
    network(module).write(folder)
    return module, folder / "network.onnx"


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [one.dim_param or one.dim_value for one in value.type.tensor_type.shape.dim]


# What is written.
def test_graph_has_the_contract_names_shapes_and_opset(written: tuple[Small, Path]) -> None:
    model = onnx.load(written[1])
    assert {value.name: dims(value) for value in (*model.graph.input, *model.graph.output)} == {
        "x": ["batch", 2, 4, 4],
        "t": ["batch"],
        "out": ["batch", 2, 4, 4],
    }
    assert [one.version for one in model.opset_import if one.domain == ""] == [21]
    assert "GroupNormalization" in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_graph_equals_the_module(written: tuple[Small, Path], batch: int) -> None:
    module, path = written
    x, t = torch.randn(batch, *SHAPE), torch.linspace(3, 900, batch)
    with torch.no_grad():
        wanted = module.eval()(x, t).numpy()
    got = OnnxRun(path, ("x", "t"), "out")((x.numpy(), t.numpy()))
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("batch", [1, 3, 70])
def test_any_batch_where_inputs_are_joined(tmp_path: Path, batch: int) -> None:
    module = Joined()
    network(module).write(tmp_path)
    model = onnx.load(tmp_path / "network.onnx")
    assert [dims(value)[0] for value in (*model.graph.input, *model.graph.output)] == ["batch"] * 3
    x, t = torch.randn(batch, *SHAPE), torch.linspace(3, 900, batch)
    with torch.no_grad():
        wanted = module.eval()(x, t).numpy()
    got = OnnxRun(tmp_path / "network.onnx", ("x", "t"), "out")((x.numpy(), t.numpy()))
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def test_tensors_of_two_dtypes_are_joined(tmp_path: Path) -> None:
    assert network(Mixed()).write(tmp_path, "fp16").precision == "fp16"
    model = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "network.onnx"), strict_mode=True)
    onnx.checker.check_model(model, full_check=True)


def test_graph_tells_nothing_of_the_machine(written: tuple[Small, Path]) -> None:
    content = written[1].read_bytes()
    assert b".py" not in content
    assert str(Path(__file__).parent).encode() not in content


def test_two_exports_are_byte_identical(written: tuple[Small, Path], tmp_path: Path) -> None:
    again = network(Small())
    again.write(tmp_path)
    assert (tmp_path / "network.onnx").read_bytes() == written[1].read_bytes()


def test_export_is_silent_and_leaves_the_module_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module = Small().train()
    module.norm.eval()
    said: list[str] = []
    network(module).write(tmp_path, progress=said.append)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert len(said) == 1
    assert module.training
    assert module.drop.training
    assert not module.norm.training
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in module.parameters())


def test_a_half_precision_module_keeps_its_dtype(tmp_path: Path) -> None:
    module = Small().half()
    contract = network(module).write(tmp_path)
    assert contract.precision == "fp32"
    assert module.into.weight.dtype == torch.float16
    model = onnx.load(tmp_path / "network.onnx")
    assert {one.data_type for one in model.graph.initializer} <= {TensorProto.FLOAT, TensorProto.INT64}


@pytest.mark.parametrize(("precision", "kind"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
def test_precision_is_in_the_graph(tmp_path: Path, precision: str, kind: int) -> None:
    module = Small()
    contract = network(module).write(tmp_path, precision)
    assert contract.precision == precision
    assert module.into.weight.dtype == torch.float32
    model = onnx.load(tmp_path / "network.onnx")
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert types == {"x": kind, "t": TensorProto.FLOAT, "out": kind}
    weights = {one.name: one.data_type for one in model.graph.initializer if "weight" in one.name}
    assert len(weights) >= 3
    assert set(weights.values()) == {kind}
    rates = [one for one in model.graph.initializer if one.name.endswith("rates")]
    assert [one.data_type for one in rates] == [TensorProto.FLOAT]


def test_external_data_holds_the_weights(tmp_path: Path) -> None:
    module = Small()
    module.into = nn.Conv2d(2, 8, 15, padding=7)
    network(module).write(tmp_path, external=True)
    assert (tmp_path / "network.onnx.data").stat().st_size >= 8 * 2 * 15 * 15 * 4
    assert sorted(one.name for one in tmp_path.iterdir()) == ["network.onnx", "network.onnx.data"]
    names = {one.value for t in onnx.load(tmp_path / "network.onnx", load_external_data=False).graph.initializer
             for one in t.external_data if one.key == "location"}  # fmt: skip
    assert names == {"network.onnx.data"}


def test_learned_sigma_keeps_the_mean(tmp_path: Path) -> None:
    module = Small(outputs=4)
    with pytest.raises(InputError, match="learned_sigma=True"):
        network(module)
    contract = network(module, learned_sigma=True).write(tmp_path)
    assert contract.learned_sigma
    x, t = torch.randn(3, *SHAPE), torch.tensor([1.0, 20.0, 300.0])
    with torch.no_grad():
        wanted = module.eval()(x, t)[:, :2].numpy()
    got = OnnxRun(tmp_path / "network.onnx", ("x", "t"), "out")((x.numpy(), t.numpy()))
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert "Slice" in {node.op_type for node in onnx.load(tmp_path / "network.onnx").graph.node}


# What is refused.
@pytest.mark.parametrize(
    ("how", "precision", "message"),
    [
        ("batch", "fp32", "fixes the batch size inside forward"),
        ("branch", "fp32", "cannot be exported"),
        ("random", "fp32", "differs from its source by"),
        ("frozen time", "fp32", "cannot be exported"),
        ("nan", "fp32", "returns NaN or infinity at time 0, batch 1"),
        ("overflow", "fp16", "NaN or infinity.*build with bf16 or fp32"),
        ("fine", "int4", "expected one of fp32, fp16, bf16"),
    ],
)
def test_a_broken_network_is_refused_in_one_line(tmp_path: Path, how: str, precision: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        network(Broken(how)).write(tmp_path, precision)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_changed_weight_is_noticed(written: tuple[Small, Path], tmp_path: Path) -> None:
    module, path = written
    model = onnx.load(path)
    weight = next(one for one in model.graph.initializer if one.name.endswith("out.weight"))
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.05
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "network.onnx")
    source = network(module)

    def exact(case: TrialInputs) -> np.ndarray:
        return source.evaluate(torch.from_numpy(case.x), case.t).numpy()

    assert check_export(path, source.contract, exact) < 1e-5
    with pytest.raises(
        InputError, match=r"differs from its source by .* at time .*, batch \d, expected at most 1.0e-04"
    ):
        check_export(tmp_path / "network.onnx", source.contract, exact)


# Inputs of the comparison.
@pytest.mark.parametrize(
    ("schedule", "prediction", "words", "times"),
    [
        ("linear:1000", "eps", {}, [0, 500, 999]),
        ("linear:1000", "eps", {"time_dtype": "int64"}, [0, 500, 999]),
        ("flow", "flow", {"time_scale": 1000.0}, [1, 500.5, 1000]),
        ("edm", "edm", {}, [np.log(0.002) / 4, np.log(40.001) / 4, np.log(80) / 4]),
    ],
)
def test_probe_times(schedule: str, prediction: str, words: dict[str, Any], times: list[float]) -> None:
    contract = Contract("a", SHAPE, schedule, prediction, **words)
    np.testing.assert_allclose(probe_times(contract), times, rtol=1e-5)


def test_cases_cover_mixed_times_and_batches() -> None:
    found = list(trial_inputs(Contract("a", SHAPE, "linear:1000", "eps")))
    assert [len(case.x) for case in found] == [1, 1, 1, 3]
    assert len(np.unique(found[-1].t)) == 3
    fixed = list(trial_inputs(Contract("a", SHAPE, "linear:1000", "eps", fixed_batch=4)))
    assert {len(case.x) for case in fixed} == {4}
