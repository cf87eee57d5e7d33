"""What is rewritten for OpenVINO has the form that it computes fast and the value that the module has."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pfdiff.engine.backends.abstract import Buffers, NetworkFiles
from pfdiff.engine.backends.casting import cast_copy
from pfdiff.engine.backends.registry import open_backend
from pfdiff.engine.contract.contract import Contract
from pfdiff.export.to_onnx import export_module

from ...comparator import assert_as_good_as_plain

openvino = pytest.importorskip("openvino")
openvino_cpu = pytest.importorskip("pfdiff.engine.backends.openvino_cpu")
rewrites = pytest.importorskip("pfdiff.engine.backends.openvino_rewrites")

SHAPE = (3, 5, 7)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@final
class Blocks(nn.Module):
    """What a U-Net is made of. Two upsampled convolutions can be rewritten, three look like them and cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.shifts = nn.ModuleList([nn.Linear(6, 12), nn.Linear(6, 8, bias=False)])
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(4, 12, eps=1e-3), nn.GroupNorm(8, 8), nn.GroupNorm(1, 4)])
        self.up = nn.ModuleList([nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, bias=False)])
        self.others = nn.ModuleList(
            [nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, stride=3, padding=1), nn.Conv2d(8, 4, 5, padding=2)]
        )
        self.head = nn.Conv2d(4, 3, 3, padding=(2, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * torch.arange(1, 5, dtype=torch.float32) / 1000
        embedding = functional.silu(self.embed(angles.to(x.dtype)))
        first, second = (shift(embedding)[:, :, None, None] for shift in self.shifts)
        y = functional.silu(self.norms[0](self.stem(x) + 3 + first))
        for up in self.up:
            y = up(functional.interpolate(y, scale_factor=2.0, mode="nearest"))
        y = functional.silu(self.norms[1](y)) + second
        for other in self.others:
            y = other(functional.interpolate(y, scale_factor=2.0, mode="nearest"))
        y = functional.interpolate(self.norms[2](y), size=SHAPE[1:], mode="bilinear")
        return self.head(y)[:, :, 1:-1, 1:-1]


@pytest.fixture(scope="module")
def module() -> Blocks:
    torch.manual_seed(0)
    module = Blocks().eval().requires_grad_(False)
    for name, values in module.norms.named_parameters():
        values.normal_(mean=float(name.endswith("weight")))
    return module


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def source(request: pytest.FixtureRequest, module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> NetworkFiles:
    contract = Contract("blocks", SHAPE, "linear:1000", "eps", precision=request.param)
    path: Path = tmp_path_factory.mktemp(request.param) / "network.onnx"
    export_module(cast_copy(module, DTYPES[request.param]).eval(), contract, path)
    return NetworkFiles(path, contract)


def test_the_form(source: NetworkFiles) -> None:
    model = openvino.Core().read_model(str(source.onnx))
    model.reshape({"x": [3, *SHAPE], "t": [3]})
    before = _kinds(model)
    rewrites.rewrite(model, source.contract.precision)
    after = _kinds(model)
    assert before["GroupNormalization"] == 3
    assert after["GroupNormalization"] == 0
    assert before["MatMul"] - after["MatMul"] == after["VariadicSplit"] == 1
    assert after["ConvolutionBackpropData"] == before["Convolution"] - after["Convolution"] == 2
    assert before["Interpolate"] - after["Interpolate"] == 2


def test_weights_used_both_ways_are_two_constants() -> None:
    """x W^T W, with one constant for both; OpenVINO alone computes another matrix."""
    op = openvino.opset13
    generator = np.random.default_rng(0)
    w = generator.standard_normal((32, 32), np.float32)
    x = generator.standard_normal((2, 16, 16, 32), np.float32)
    value, weights = op.parameter(list(x.shape), np.float32, name="x"), op.constant(w)
    model = openvino.Model([op.matmul(op.matmul(value, weights, False, True), weights, False, False)], [value], "tied")
    rewrites.tied_weights(model)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    wanted = x.astype(np.float64) @ w.T @ w
    np.testing.assert_allclose(compiled({"x": x})[0], wanted, atol=1e-5 * np.abs(wanted).max())


def test_fp16_keeps_its_group_normalisation(source: NetworkFiles) -> None:
    model = openvino.Core().read_model(str(source.onnx))
    model.reshape({"x": [1, *SHAPE], "t": [1]})
    rewrites.rewrite(model, "fp16")
    assert _kinds(model)["GroupNormalization"] == 3


def test_the_values_at_every_batch(source: NetworkFiles, module: nn.Module) -> None:
    contract = source.contract
    if contract.precision not in openvino_cpu.cpu_precisions():
        pytest.skip(f"this CPU has no {contract.precision} arithmetic")
    dtype = DTYPES[contract.precision]
    backend = open_backend("openvino", source, None)
    for batch in (1, 5):
        x, out, t = torch.randn(batch, *SHAPE), torch.empty(batch, *SHAPE), torch.linspace(0, 999, batch)
        (evaluate,) = backend.bind([Buffers(x, t, (), out)])
        evaluate()
        exact = cast_copy(module, torch.float64)(x.double(), t)
        plain = cast_copy(module, dtype)(x.to(dtype), t)
        assert_as_good_as_plain(actual=out.to(dtype), plain=plain, exact=exact)
    backend.close()


def _kinds(model: Any) -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ops())
