"""What backend torch changes of a network on a real GPU: group normalisation without copies, guidance at scale 1."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfdiff.bench.measuring.profiling import launches, runtime_calls
from pfdiff.engine.api import Engine
from pfdiff.engine.artifact import Artifact
from pfdiff.engine.backends.abstract import CudaOptions
from pfdiff.engine.backends.group_norm import LEAST_ELEMENTS, group_norm
from pfdiff.engine.backends.guided import Guided, UnitScale
from pfdiff.engine.contract.condition import Condition
from pfdiff.engine.runtime.cuda.loop import CudaLoop

from ..comparator import assert_as_good_as_plain
from ..small.cuda import calls_of_one_launch
from ..small.engine import CONTRACT, program

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs an NVIDIA GPU with a driver and a CUDA build of torch"
    ),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 320, 32, 32), (1, 128, 97, 31), (3, 64, 1531)], ids=str)
@pytest.mark.parametrize("groups", [1, 32])
def test_group_norm_keeps_channels_last(shape: tuple[int, ...], groups: int, dtype: torch.dtype) -> None:
    batch, channels, *sides = shape
    torch.manual_seed(sum(shape))
    x = (3 * torch.randn(batch, *sides, channels, device="cuda") + 5).to(dtype).movedim(-1, 1)
    weight, bias = (torch.randn(channels, device="cuda").to(dtype) for _ in range(2))
    assert x.numel() >= LEAST_ELEMENTS
    with torch.inference_mode():
        y, plain = group_norm(x, groups, weight, bias, 1e-6), F.group_norm(x, groups, weight, bias, 1e-6)
        exact = F.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-6)
    assert y.stride() == x.stride()
    assert_as_good_as_plain(actual=y, plain=plain, exact=exact)


def test_group_norm_launches_no_kernel_that_copies() -> None:
    for dtype, kernels in ((torch.float32, 6), (torch.float16, 7)):  # docs/concepts/gpu-speed.md
        x = torch.randn(2, 64, 64, 320, device="cuda").to(dtype).movedim(-1, 1)
        weight, bias = torch.ones(2, 320, dtype=dtype, device="cuda")
        with torch.inference_mode():
            group_norm(x, 32, weight, bias, 1e-6)
            calls = runtime_calls(lambda x=x, weight=weight, bias=bias: group_norm(x, 32, weight, bias, 1e-6))
        assert launches(calls) <= kernels, calls


class Convolutions(nn.Module):
    """forward(x [B, 4, 64, 64], t [B]) -> the same shape, with norms that are large enough to be replaced."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(
            nn.Conv2d(4, 128, 3, padding=1),
            nn.GroupNorm(32, 128),
            nn.SiLU(),
            nn.Conv2d(128, 128, 3, padding=1),
            nn.GroupNorm(32, 128),
            nn.SiLU(),
            nn.Conv2d(128, 4, 3, padding=1),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.body(x) + (0.001 * t[:, None, None, None]).to(x.dtype)


def convolutions(*, graph: bool = True) -> Engine:
    contract = replace(CONTRACT, name="convolutions", shape=(4, 64, 64), conditions=(), precision="fp16")
    artifact = Artifact(Path("convolutions"), contract, (1, 4), "fp16", {4: program(4, contract)})
    options = CudaOptions(graph=graph, compile=False)
    return Engine.open(artifact, device="cuda", backend="torch", module=Convolutions(), options=options)


def test_such_a_network_is_captured() -> None:
    with convolutions() as engine, convolutions(graph=False) as plain:
        for seeds in ([5], range(4)):
            x = engine.sample(seeds=seeds)
            assert torch.equal(x, plain.sample(seeds=seeds))
            assert torch.equal(x, engine.sample(seeds=seeds))
        assert engine.execution == "one CUDA graph a batch"


class Doubled(nn.Module, Guided):
    """Classifier-free guidance of a tanh, in one batch of twice the size."""

    unit_scale = UnitScale("guidance")

    def forward(self, x: Tensor, t: Tensor, guidance: Tensor) -> Tensor:
        c, u = torch.tanh(torch.cat((0.7 * x, 0.2 * x))).chunk(2)
        return u + guidance.reshape(-1, 1, 1, 1) * (c - u)

    def conditional(self, *inputs: Tensor) -> Tensor:
        return torch.tanh(0.7 * inputs[0])


def test_scale_1_replays_a_graph_of_its_own() -> None:
    contract = replace(CONTRACT, conditions=(Condition("guidance", "float32", default=2.0),))
    artifact = Artifact(Path("doubled"), contract, (4,), "fp32", {6: program(6, contract)})
    options = CudaOptions(compile=False)
    with Engine.open(artifact, device="cuda", backend="torch", module=Doubled(), options=options) as engine:
        loop = engine._session._loop
        assert isinstance(loop, CudaLoop)
        device = torch.ones(4, device="cuda")
        doubled = engine.sample(seeds=range(4), guidance=device)  # not read, so both halves
        assert [kind.halved[0] for _, kind in loop._held] == [False]
        for scale, captured in ((1.0, 2), ([1.0, 1, 1, 2], 2), (3.0, 2), (1.0, 2)):
            x = engine.sample(seeds=range(4), guidance=scale)
            assert len(set(loop._held.values())) == captured
            if scale == 1.0:
                assert torch.allclose(x, doubled, rtol=1e-5, atol=1e-5)
        calls_of_one_launch(lambda: engine.sample(seeds=range(4), guidance=1.0))
