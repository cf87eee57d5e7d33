"""Where the scale of guidance is 1, backend torch evaluates the conditional half alone, with the same result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pfdiff
from pfdiff.engine.backends.abstract import CudaOptions, NetworkFiles
from pfdiff.engine.backends.torch_cuda import TorchCuda
from pfdiff.engine.runtime.cuda.batch import BatchKind, CudaBatch
from pfdiff.engine.runtime.cuda.loop import CudaLoop
from pfdiff.engine.runtime.inputs import Inputs
from pfdiff.engine.runtime.loop import make_tables
from pfdiff.export.build import _module_of
from pfdiff.export.guidance.in_module import GuidedCall
from pfdiff.export.guidance.options import ClassifierFree

from ..small.engine import CONDITIONS, SHAPE, Small
from .test_guidance import LABELS, NONE, SHIFT, WORDS, ddim_loop, guided_eps

CPU = torch.device("cpu")
NFE = 5


class Counting(Small):
    """The batch of every evaluation; copies count into the same list."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def __deepcopy__(self, memo: Any) -> Counting:
        other = Counting()
        other.load_state_dict(self.state_dict())
        other.batches = self.batches
        return other

    def forward(self, x: Tensor, t: Tensor, label: Tensor, shift: Tensor) -> Tensor:
        self.batches.append(len(x))
        return super().forward(x, t, label, shift)


def network_of(module: nn.Module, **guidance: Any) -> pfdiff.Network:
    return pfdiff.Network(module, **WORDS, guidance=ClassifierFree({"label": NONE}, **guidance))


@pytest.fixture(scope="module")
def counting() -> Counting:
    return Counting()


@pytest.fixture(scope="module")
def engine(counting: Counting, tmp_path_factory: pytest.TempPathFactory) -> Iterator[pfdiff.Engine]:
    out = tmp_path_factory.mktemp("half") / "a.engine"
    settings: dict[str, Any] = {"grid": "trailing", "batch": 4, "backend": "torch", "device": "cpu", "out": out}
    with pfdiff.build(network_of(counting), NFE, "ddim", **settings) as engine:
        yield engine


# On a CPU.
def test_a_call_at_scale_1_evaluates_the_batch_alone(engine: pfdiff.Engine, counting: Counting) -> None:
    noise = pfdiff.noise(range(4), SHAPE)
    for scale, batch in ((1.0, 4), (torch.ones(4), 4), (None, 4), (2.0, 8), (torch.tensor([1.0, 1, 1, 0]), 8), (1, 4)):
        counting.batches.clear()
        given: dict[str, Any] = {} if scale is None else {"guidance": scale}  # its default is 1
        got = engine.sample(noise=noise, label=LABELS, shift=SHIFT, **given)
        assert counting.batches == [batch] * NFE
        scales = torch.ones(4) if scale is None else torch.as_tensor(scale, dtype=torch.float32).expand(4)
        exact = ddim_loop(guided_eps(scales), noise, NFE)
        torch.testing.assert_close(got, exact, atol=1e-5, rtol=1e-5)


def test_a_batch_of_a_larger_call_is_looked_at_by_itself(engine: pfdiff.Engine, counting: Counting) -> None:
    counting.batches.clear()
    engine.sample(seeds=range(8), label=3, guidance=[1, 1, 1, 1, 1, 1, 1, 2])
    assert counting.batches == [4] * NFE + [8] * NFE


def test_what_is_timed_is_what_a_call_does(engine: pfdiff.Engine, counting: Counting) -> None:
    parts = engine.parts()
    parts.whole()
    counting.batches.clear()
    parts.network()
    assert counting.batches == [4] * NFE


@pytest.mark.parametrize(
    ("guidance", "scale"),
    [
        ({}, 1.0),
        ({"rescale": 0.7}, 1.0),
        ({"offset": 1.0}, 0.0),
        ({"keep": "rows"}, 1.0),
        ({"interval": (100, 300)}, 5.0),
        ({"interval": (100, 300), "rescale": 0.5, "keep": "rows", "offset": 1.0}, 5.0),
    ],
)
def test_the_half_equals_the_whole_where_the_scale_is_1(guidance: dict[str, Any], scale: float) -> None:
    network = network_of(Counting(), **guidance)
    guided = _module_of(network, required=True)
    assert isinstance(guided, GuidedCall)
    torch.manual_seed(2)
    inputs = torch.randn(4, *SHAPE), torch.full((4,), 700.0), LABELS, SHIFT, torch.full((4,), scale)
    assert guided.unit_scale.known(inputs[-1].numpy(), inputs[1].numpy()).all()
    with torch.no_grad():
        whole, half = guided(*inputs), guided.conditional(*inputs)
    assert half.dtype == whole.dtype
    torch.testing.assert_close(half, whole, atol=1e-6, rtol=1e-6)


def test_inside_an_interval_the_batch_is_doubled(tmp_path: Path) -> None:
    counting = Counting()
    settings: dict[str, Any] = {"grid": "trailing", "batch": 4, "backend": "torch", "device": "cpu"}
    with pfdiff.build(
        network_of(counting, interval=(300, 700)), NFE, "ddim", out=tmp_path / "a.engine", **settings
    ) as engine:
        times = engine.programs[NFE].network_times
        inside = [300 <= time <= 700 for time in times]
        assert any(inside)
        assert not all(inside)
        for scale, doubled in ((3.0, inside), (1.0, [False] * NFE)):
            counting.batches.clear()
            got = engine.sample(
                noise=(noise := pfdiff.noise(range(4), SHAPE)), label=LABELS, shift=SHIFT, guidance=scale
            )
            assert counting.batches == [8 if one else 4 for one in doubled]

            def eps(x: Tensor, t: float, scale: float = scale) -> Tensor:
                return guided_eps(torch.full((4,), scale if 300 <= t <= 700 else 1.0))(x, t)

            torch.testing.assert_close(got, ddim_loop(eps, noise, NFE), atol=1e-5, rtol=1e-5)


# The launches of a CUDA device, on a CPU.
def backend_of(network: pfdiff.Network, precision: str = "fp32", **options: Any) -> TorchCuda:
    contract = replace(network.contract, precision=precision)
    module = _module_of(network, required=True)
    return TorchCuda(NetworkFiles(Path("none"), contract, module, options=CudaOptions(**options)), CPU)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_batch_of_evaluations_at_scale_1(precision: str, counting: Counting) -> None:
    network = network_of(counting)
    backend = backend_of(network, precision)
    contract = replace(network.contract, precision=precision)
    held = make_tables(pfdiff.compile("ddim", "linear:1000", NFE, grid="trailing"), contract)
    noise = pfdiff.noise(range(4), SHAPE)
    results = []
    for halved in ((), (True,) * NFE, (True, False, True, False, True)):
        batch = CudaBatch(backend, contract, held, BatchKind(4, False, False, halved=halved))
        batch.load(Inputs(None, noise.flatten(1), [LABELS.numpy(), SHIFT.numpy(), np.ones(4, np.float32)]))
        counting.batches.clear()
        batch.run()
        assert counting.batches == [4 if one else 8 for one in halved or (False,) * NFE]
        results.append(batch.result.clone())
    tolerance = {"fp32": 1e-5, "fp16": 5e-3}[precision]
    for one in results[1:]:
        torch.testing.assert_close(one, results[0], atol=tolerance, rtol=tolerance)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A CUDA loop as far as it chooses between kinds of batches."""

    def make(backend: TorchCuda, contract: Any) -> CudaLoop:
        made = object.__new__(CudaLoop)
        vars(made).update(_backend=backend, _contract=contract)
        return made

    return make


def test_the_kind_of_a_batch_says_which_evaluations_are_halved(loop: Any) -> None:
    """One more captured graph of the same program: chosen by what the host knows, never by reading the device."""
    network = network_of(Counting(), interval=(0, 700))
    made = loop(backend_of(network), network.contract)
    held = make_tables(pfdiff.compile("ddim", "linear:1000", NFE, grid="trailing"), network.contract)
    late = tuple(bool(time > 700) for time in held.times)
    seeds = np.arange(2, dtype=np.uint64)

    def kind(scale: Any) -> BatchKind:
        return made._kind(held, 4, Inputs(seeds, None, [LABELS[:2].numpy(), SHIFT[:2].numpy(), scale]), False)

    assert any(late)
    assert not all(late)
    ones = np.ones(2, np.float32)
    assert kind(ones).halved == (True,) * NFE
    assert kind(ones * 2).halved == late
    assert kind(np.array([1, 2], np.float32)).halved == late
    assert kind(torch.ones(2, device="meta")).halved == late  # on the device
    assert kind(ones) != kind(ones * 2)
    assert made._halved(held, None) == (True,) * NFE  # what is timed: the default scale, 1
    plain = loop(TorchCuda(NetworkFiles(Path("none"), network.contract, Small()), CPU), network.contract)
    assert plain._halved(held, [ones, ones, ones]) == ()


def test_both_are_compiled_alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And what that costs is said once."""
    asked: list[Any] = []

    def compile(function: Any, **settings: Any) -> Any:
        asked.append((function, settings))
        return function

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.warns(RuntimeWarning, match="compiles 'Counting'|compiles '") as said:
        backend = backend_of(network_of(Counting()), compile=True)
    assert len(said) == 1
    assert len(asked) == 2
    assert asked[0][1] == asked[1][1]
    assert asked[1][0].__self__ is asked[0][0]  # of the same copy, so the weights are there once
    assert backend.unit_scale is not None


def test_other_networks_are_called_as_they_were() -> None:
    words = {**WORDS, "conditions": {one.name: one for one in CONDITIONS}}
    assert backend_of(pfdiff.Network(Small(), **words)).unit_scale is None
