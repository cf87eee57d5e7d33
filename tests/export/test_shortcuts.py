"""The exporter's shortcuts: the graph that the exporter's own way makes, and its own way where they do not hold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from pfdiff.engine.contract.contract import Contract
from pfdiff.export import shortcuts, to_onnx


class Usual(nn.Module):
    """An operator of every kind that is replaced, as a first, an inner and a last one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 12)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = t.to(torch.float32).flatten()[:, None] * torch.arange(3, device=x.device)
        a, b = self.layer(self.dropout(x)).to("cpu", torch.float64).chunk(2, dim=-1)
        y = (a * b).to(torch.float32).transpose(0, 1).contiguous().reshape(6, -1).transpose(0, 1)
        waves = torch.stack([angle.sin(), angle.cos()], 1).flatten(1)
        return self.dropout(y * waves).to(torch.float32)


class Unusual(nn.Module):
    """`unflatten` is not among them: this network takes the exporter's decompositions."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x.unflatten(1, (2, 3)).roll(1, 1).reshape(-1, 6) * t[:, None]


class Mixed(nn.Module):
    """Integers, bools and floats meet: some operators get casts, of which some change what later ones take."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        n = t.to(torch.int64)
        halves, parts, both = n / 2, n * 1.5, x / 1 * 4
        late = (n > 3)[:, None] * both + n[:, None]
        return (late.double() * halves[:, None]).to(torch.float32) + parts[:, None] + (n + n)[:, None] * x


@contextlib.contextmanager
def without() -> Iterator[None]:
    yield


@pytest.mark.parametrize("network", [Usual, Unusual, Mixed])
def test_the_graph_is_the_exporters_own(
    network: type[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module, contract = network().eval(), Contract("small", (6,), "linear:100", "eps")
    to_onnx.export_module(module, contract, tmp_path / "short.onnx")
    monkeypatch.setattr(to_onnx, "shortcuts", without)
    to_onnx.export_module(module, contract, tmp_path / "whole.onnx")

    short, whole = (onnx.load(tmp_path / name) for name in ("short.onnx", "whole.onnx"))
    assert [node.op_type for node in short.graph.node] == [node.op_type for node in whole.graph.node]
    x, t = torch.randn(5, 6), torch.arange(5.0)
    expected = module(x, t).detach().numpy()
    found = [run(tmp_path / name, x, t) for name in ("short.onnx", "whole.onnx")]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6)


def run(path: Path, x: Tensor, t: Tensor) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.numpy(), "t": t.numpy()})[0]


def test_a_usual_network_is_traced_once_and_another_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[bool] = []
    found = shortcuts.simplified
    monkeypatch.setattr(shortcuts, "simplified", lambda *given: traced.append(found(*given)) or traced[-1])
    for network in (Usual, Unusual):
        to_onnx.export_module(network().eval(), Contract("small", (6,), "linear:100", "eps"), tmp_path / "n.onnx")
    assert traced == [True, False]


def test_torch_and_onnxscript_are_as_before() -> None:
    from onnxscript.rewriter._rewrite_rule import RewriteRule
    from torch.onnx._internal.exporter import _fx_passes
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    def internals() -> tuple[Any, ...]:
        table = vars(ONNXRegistry)["from_torchlib"]
        return _fx_passes.decompose_with_registry, RewriteRule.try_rewrite, table

    before = internals()
    with contextlib.suppress(KeyboardInterrupt), shortcuts.shortcuts():
        assert all(one is not other for one, other in zip(internals(), before, strict=True))
        raise KeyboardInterrupt
    assert internals() == before
