"""Group normalisation of channels-last tensors: PyTorch's numbers, no copy into another layout."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pfdiff.engine.backends import group_norm as module
from pfdiff.engine.backends.abstract import Buffers, NetworkFiles
from pfdiff.engine.backends.group_norm import group_norm, without_layout_copies
from pfdiff.engine.backends.torch_cpu import TorchModule
from pfdiff.engine.backends.torch_cuda import TorchCuda
from pfdiff.engine.contract.contract import Contract

from ...comparator import assert_as_good_as_plain

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# One sample in one group of half precision is refused by torch.var on a CPU alone ("std_var_all"): one sample has four.
CASES = [
    *(((2, 24, 7, 5), groups) for groups in (1, 4, 24)),
    ((1, 24, 8, 8), 4),
    *(((3, 24, 11), groups) for groups in (1, 8)),
    *(((2, 24, 3, 5, 4), groups) for groups in (1, 8)),
]
COPIES = ("clone", "copy_", "_to_copy", "contiguous")
VIEWS = ("unflatten", "view", "empty_like", "movedim", "permute")  # move and compute nothing


class Recorder(TorchDispatchMode):
    """The operators that run inside, by name, without views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.")
        if not name.startswith(VIEWS):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_ELEMENTS", 1)


def channels_last(*shape: int, dtype: torch.dtype = torch.float32, mean: float = 0.5) -> Tensor:
    """[B, C, ..] with channels last in memory."""
    generator = torch.Generator().manual_seed(sum(shape))
    batch, channels, *sides = shape
    x = torch.randn((batch, *sides, channels), generator=generator) * 2 + mean
    return x.to(dtype).movedim(-1, 1)


def affine(channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(channels)
    return torch.randn(channels, generator=generator).to(dtype), torch.randn(channels, generator=generator).to(dtype)


def exact(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """The formula in float64."""
    grouped = x.double().reshape(len(x), groups, -1)
    centred = grouped - grouped.mean(-1, keepdim=True)
    normed = (centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()).reshape(x.shape)
    if weight is None or bias is None:
        return normed
    each = (1, -1, *[1] * (x.ndim - 2))
    return normed * weight.double().view(each) + bias.double().view(each)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "groups"), CASES)
@pytest.mark.parametrize("learned", [True, False])
def test_it_is_group_norm_and_keeps_the_layout(
    shape: tuple[int, ...], dtype: torch.dtype, learned: bool, groups: int
) -> None:
    x = channels_last(*shape, dtype=dtype)
    weight, bias = affine(shape[1], dtype) if learned else (None, None)
    with torch.inference_mode():
        y = group_norm(x, groups, weight, bias, 1e-5)
        plain = F.group_norm(x, groups, weight, bias, 1e-5)
    assert y.dtype == dtype
    assert y.stride() == x.stride()
    assert_as_good_as_plain(actual=y, plain=plain, exact=exact(x, groups, weight, bias, 1e-5))
    if dtype == torch.float32:
        assert (y - plain).abs().max() <= 1e-6 * plain.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_far_from_zero_and_beyond_what_half_precision_squares(dtype: torch.dtype) -> None:
    """var is 250,000 in the first, which float16 does not hold, and 4e-8 in the second, which it rounds to 6e-8."""
    weight, bias = affine(8, dtype)
    for x in (channels_last(2, 8, 6, 6, dtype=dtype) * 250, channels_last(2, 8, 6, 6, dtype=dtype, mean=0) * 1e-4):
        with torch.inference_mode():
            y, plain = group_norm(x, 2, weight, bias, 1e-9), F.group_norm(x, 2, weight, bias, 1e-9)
        assert_as_good_as_plain(actual=y, plain=plain, exact=exact(x, 2, weight, bias, 1e-9))


@pytest.mark.parametrize(
    ("dtype", "learned", "wanted"),
    [
        (torch.float32, True, ["var_mean.correction", "add.Tensor", "rsqrt.default", "mul.Tensor"]),
        (torch.float32, False, ["var_mean.correction", "add.Tensor", "rsqrt.default", "mul.Tensor"]),
        (torch.float16, True, ["mean.dim", "var.correction_out", "add.Tensor", "rsqrt.default", "mul.Tensor"]),
    ],
)
def test_nothing_is_copied_and_the_output_is_written_once(dtype: torch.dtype, learned: bool, wanted: list[str]) -> None:
    x = channels_last(2, 24, 8, 8, dtype=dtype)
    weight, bias = affine(24, dtype) if learned else (None, None)
    with torch.inference_mode(), Recorder() as recorder:
        group_norm(x, 4, weight, bias, 1e-5)
    assert recorder.names == [*wanted, "addcmul.default" if learned else "neg.default", "addcmul.out"]


def test_what_is_not_channels_last_or_small_or_of_another_dtype_is_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = torch.randn(2, 8, 4, 4)
    others = [
        dense,
        torch.randn(6, 8),
        channels_last(2, 8, 4, 4).double(),
        channels_last(2, 8, 4, 6)[..., ::2],  # has gaps
        channels_last(2, 8, 1, 1),  # both layouts at once
    ]
    weight, bias = affine(8, torch.float32)
    for x in others:
        given = weight.to(x.dtype), bias.to(x.dtype)
        with torch.inference_mode(), Recorder() as recorder:
            y = group_norm(x, 2, *given, 1e-5)
        assert any("group_norm" in name for name in recorder.names)
        assert torch.equal(y, F.group_norm(x, 2, *given, 1e-5))
    monkeypatch.setattr(module, "LEAST_ELEMENTS", 513)
    for batch, own in ((4, False), (5, True)):  # 512 and 640 elements
        with torch.inference_mode(), Recorder() as recorder:
            group_norm(channels_last(batch, 8, 4, 4), 2, weight, bias, 1e-5)
        assert (recorder.names[-1] == "addcmul.out") == own
    with pytest.raises(RuntimeError, match="divisible"):
        group_norm(channels_last(20, 8, 4, 4), 3, weight, bias, 1e-5)


# In a network.
class OwnForward(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class Renamed(nn.GroupNorm):
    """Another class, the same forward."""


class Network(nn.Module):
    """Convolutions, an attention block that norms [B, C, L], norms of every kind; forward(x [B, 3, H, W], t [B])."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.SiLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            Renamed(8, 16, affine=False),
            nn.SiLU(),
            nn.Conv2d(16, 16, 1),
        )
        self.own = OwnForward(4, 16)
        self.inner = nn.GroupNorm(4, 16)
        self.project = nn.Linear(16, 16)
        self.time = nn.Sequential(nn.Linear(1, 16), nn.GroupNorm(4, 16))
        self.out = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.body(x)
        rows = h.flatten(2)  # [B, C, L], still channels last
        attended = self.project(self.inner(rows).transpose(1, 2)).transpose(1, 2)
        h = self.own(h + attended.unflatten(2, h.shape[2:]))
        return self.out(h + self.time(t[:, None])[..., None, None])


SHAPE = (3, 12, 10)
CONTRACT = Contract("norms", SHAPE, "cosine:300", "eps", "fp32", time_dtype="float32")


def evaluated(network: nn.Module, precision: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The network as backend torch runs it on a GPU, on the CPU."""
    contract = replace(CONTRACT, precision=precision)
    backend = TorchCuda(NetworkFiles(Path("none"), contract, network), CPU)
    buffers = Buffers.of(contract, 2, backend.dtype)
    [evaluate] = backend.bind([buffers])

    def call(x: Tensor, t: Tensor) -> Tensor:
        buffers.x.copy_(x)
        assert buffers.t is not None
        buffers.t.copy_(t)
        return evaluate().clone()

    return call


def test_a_network_in_half_precision_copies_no_layout_but_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network().eval()
    x, t = torch.randn(2, *SHAPE), torch.rand(2)
    run = evaluated(network, "fp16")
    with Recorder() as recorder:
        y = run(x, t)
    assert recorder.names.count("addcmul.out") == 3  # body 2, inner 1
    copies = [name for name in recorder.names if name.startswith(COPIES)]
    # The test's own inputs, the output put in order, the test's own output.
    assert copies == ["copy_.default", "copy_.default", "contiguous.default", "clone.default"]
    assert sum("group_norm" in name for name in recorder.names) == 2  # that with a forward of its own, and [B, C]
    monkeypatch.setattr(module, "LEAST_ELEMENTS", 1 << 40)
    plain = evaluated(network, "fp16")(x, t)
    with torch.no_grad():
        reference = copy.deepcopy(network).double()(x.double(), t.double())
    assert_as_good_as_plain(actual=y.float(), plain=plain.float(), exact=reference)


def test_nothing_else_is_changed() -> None:
    network = Network().eval()
    state = {name: one.clone() for name, one in network.state_dict().items()}
    duplicate = copy.deepcopy(network)
    evaluated(network, "fp16")(torch.randn(2, *SHAPE), torch.rand(2))
    TorchModule(NetworkFiles(Path("none"), CONTRACT, network), None)
    for one in network.modules():
        assert "forward" not in vars(one)
    assert all(torch.equal(one, state[name]) for name, one in network.state_dict().items())
    without_layout_copies(duplicate)
    changed = [name for name, one in duplicate.named_modules() if "forward" in vars(one)]
    assert changed == ["body.1", "body.4", "inner", "time.1"]
    assert [*duplicate.state_dict()] == [*state]
    x = channels_last(2, 16, 4, 4)
    with torch.inference_mode():
        assert torch.equal(duplicate.body[1](input=x), duplicate.body[1](x))
    assert isinstance(duplicate.body[4], Renamed)
    assert type(duplicate.own).forward is OwnForward.forward
    # float32 without TF32 stays in PyTorch's usual layout, and so do its norms.
    with Recorder() as recorder:
        evaluated(network, "fp32")(torch.randn(2, *SHAPE), torch.rand(2))
    assert "addcmul.out" not in recorder.names


def test_a_compiler_sees_pytorchs_operator() -> None:
    network = Network().eval()
    without_layout_copies(network)
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    x, t = channels_last(2, *SHAPE), torch.rand(2)
    with torch.inference_mode():
        compiled = torch.compile(network, backend=backend, fullgraph=True)
        torch.testing.assert_close(compiled(x, t), network(x, t))
    assert sum("group_norm" in one for one in seen) == 5
    assert not any("addcmul" in one for one in seen)
