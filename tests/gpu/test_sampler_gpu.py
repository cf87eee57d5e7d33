"""The whole schedule on a real GPU: captured, replayed, poisoned, counted.

What CPU tensors cannot show: that a replay gives the bits of the launches it recorded, that it reads nothing but its
inputs, that nothing in it waits or allocates, and what happens when a capture is refused.
"""

from __future__ import annotations

import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pfdiff import BackendError, InputError
from pfdiff.bench.measuring.gpu_engines import engine_of, module_of
from pfdiff.bench.measuring.profiling import (
    allocator_requests,
    copies,
    launches,
    runtime_calls,
    waits,
)
from pfdiff.engine.api import Engine
from pfdiff.engine.artifact import Artifact
from pfdiff.engine.backends.abstract import CudaOptions
from pfdiff.engine.runtime.cuda.batch import CudaBatch
from pfdiff.engine.runtime.cuda.loop import CudaLoop
from pfdiff.engine.runtime.inputs import Inputs
from pfdiff.engine.runtime.noise import noise

from ..comparator import assert_as_good_as_plain
from ..small.cuda import calls_of_one_launch
from ..small.engine import CONTRACT, SHAPE, Small, program, small

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs an NVIDIA GPU with a driver and a CUDA build of torch"
    ),
]

SOLVERS = ["ddim", "pfdiff:k=2,l=1", "dpm++:2m", "dpm-solver:order=3", "pfdiff:k=1,l=1,base=dpm-solver-2"]


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")


@pytest.fixture(scope="module")
def fashion() -> torch.nn.Module:
    return module_of("fashion")


def small_engine(module: Any = None, *, batch: tuple[int, ...] = (1, 8), **settings: Any) -> Engine:
    """An engine of the network of the CPU's tests; `graph` and `precision` as settings, the rest of the program."""
    options = CudaOptions(graph=settings.pop("graph", True), compile=settings.pop("compile", False))
    contract = replace(CONTRACT, precision=settings.pop("precision", "fp32"))
    evaluations = (6,) if "solver" in settings else (4, 6)  # some solvers take multiples of 2 or 3
    programs = {nfe: program(nfe, contract, **settings) for nfe in evaluations}
    artifact = Artifact(Path("small"), contract, batch, contract.precision, programs)
    module = Small() if module is None else module
    return Engine.open(artifact, device="cuda", backend="torch", module=module, options=options)


def samplers(engine: Engine) -> list[CudaBatch]:
    loop = engine._session._loop
    assert isinstance(loop, CudaLoop)
    return list(loop._held.values())


# A replay is what was recorded, and nothing else.
@pytest.mark.parametrize(
    ("solver", "precision", "clip"),
    [
        *((solver, precision, None) for solver in SOLVERS for precision in ("fp32", "fp16")),
        ("pfdiff:k=2,l=1", "bf16", None),
        ("pfdiff:k=2,l=1", "fp32", 1.0),
        ("dpm-solver:order=3", "fp16", 1.0),
    ],
)
def test_replay_equals_the_launches_bit_for_bit(solver: str, precision: str, clip: float | None) -> None:
    with (
        small_engine(solver=solver, precision=precision, clip=clip) as captured,
        small_engine(solver=solver, precision=precision, clip=clip, graph=False) as eager,
    ):
        for seeds in ([5], range(8), range(11)):
            x = captured.sample(seeds=seeds, nfe=6, label=3)
            assert torch.equal(x, eager.sample(seeds=seeds, nfe=6, label=3))
            assert x.isfinite().all()
        assert captured.execution == "one CUDA graph a batch"
        assert eager.execution == "kernel by kernel, not captured: not wanted"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_replay_equals_the_launches_for_the_shipped_network(fashion: torch.nn.Module, precision: str) -> None:
    with (
        engine_of("fashion", fashion, batch=(1, 8), precision=precision) as captured,
        engine_of(
            "fashion", fashion, batch=(1, 8), precision=precision, options=CudaOptions(graph=False, compile=False)
        ) as eager,
    ):
        for seeds in ([7], range(8)):
            x = captured.sample(seeds=seeds, label=4)
            assert torch.equal(x, captured.sample(seeds=seeds, label=4))
            assert torch.equal(x, eager.sample(seeds=seeds, label=4))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_poison_between_replays_changes_nothing(precision: str) -> None:
    with small_engine(precision=precision, solver="dpm-solver:order=3", clip=1.0) as engine:
        first = engine.sample(seeds=range(8), nfe=6, label=2), engine.images(seeds=range(8), nfe=6, label=2)
        engine._session.wait()
        for sampler in samplers(engine):
            for buffer in (sampler.static.states, sampler.static.noise, sampler.static.y_in):
                if buffer is not None:
                    buffer.fill_(torch.nan)
            sampler.static.inputs.block.seeds.fill_(-1)
            if sampler.static.pixels is not None:
                sampler.static.pixels.fill_(99)
        torch.cuda.synchronize()
        again = engine.sample(seeds=range(8), nfe=6, label=2), engine.images(seeds=range(8), nfe=6, label=2)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])


def test_inputs_change_without_a_new_capture() -> None:
    with small_engine() as engine:
        seen = [engine.sample(seeds=[seed] * 8, nfe=4, label=label) for seed in (1, 2) for label in (0, 9)]
        held = samplers(engine)
        assert len(held) == 1
        graph = held[0].graph
        shifted = engine.sample(seeds=[1] * 8, nfe=4, label=0, shift=np.full((3, 1), 0.5, np.float32))
        assert samplers(engine)[0].graph is graph
        for one in (*seen[1:], shifted):
            assert not torch.equal(one, seen[0])
        z = noise([1] * 8, SHAPE, "cuda")
        assert torch.equal(engine.sample(noise=z, nfe=4, label=0), seen[0])
        assert len(samplers(engine)) == 2


def test_pinned_conditions_may_change_after_the_call() -> None:
    with small_engine() as engine:
        shift = torch.full((8, 3, 1), 0.5)
        expected = engine.sample(seeds=range(8), nfe=4, shift=shift)
        pinned = shift.pin_memory()
        torch.cuda._sleep(1 << 28)  # a tenth of a second, in which nothing of the call can run
        x = engine.sample(seeds=range(8), nfe=4, shift=pinned)
        pinned.zero_()
        assert torch.equal(x, expected)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_starts_from_a_picture_share_a_graph(precision: str) -> None:
    picture = torch.linspace(-1, 1, 30).reshape(SHAPE)
    with (
        small_engine(solver="pfdiff:k=2,l=1", precision=precision) as captured,
        small_engine(solver="pfdiff:k=2,l=1", precision=precision, graph=False) as plain,
    ):
        for strength in (0.3, 0.7, 0.3, 1.0, 0.7):
            given = {"image": picture, "strength": strength, "seeds": range(8), "nfe": 6, "label": 3}
            assert torch.equal(captured.sample(**given), plain.sample(**given))
        assert len(set(samplers(captured))) == 1


# Seeds.
def test_a_seed_is_one_sample_whatever_the_bucket() -> None:
    with small_engine(batch=(1, 3, 8)) as engine:
        alone = torch.cat([engine.sample(seeds=[seed], nfe=6) for seed in range(12)])
        together = engine.sample(seeds=range(12), nfe=6)
        assert torch.equal(noise(range(12), SHAPE, "cuda"), torch.cat([noise([s], SHAPE, "cuda") for s in range(12)]))
        assert torch.allclose(alone, together, rtol=1e-6, atol=1e-6)
        assert torch.equal(engine.sample(seeds=[4, 2**64 - 1], nfe=6)[0], engine.sample(seeds=[4, 9], nfe=6)[0])


def test_noise_agrees_with_the_cpu_to_rounding() -> None:
    seeds = [0, 1, 2**63, 2**64 - 1]
    on_gpu, on_cpu = noise(seeds, (3, 64, 64), "cuda").cpu(), noise(seeds, (3, 64, 64))
    assert torch.allclose(on_gpu, on_cpu, rtol=1e-6, atol=1e-7)


# Against the CPU and against plain torch.
@pytest.mark.parametrize("solver", SOLVERS)
def test_gpu_and_cpu_engines_agree(solver: str) -> None:
    z = noise(range(8), SHAPE)
    with small_engine(solver=solver) as on_gpu:
        x = on_gpu.sample(noise=z, nfe=6, label=5)
    reference = program(6, solver=solver)

    def network(x: torch.Tensor, t: float) -> torch.Tensor:
        return small(x, t, label=5)

    exact, plain = reference.evaluate(network, z.double()), reference.evaluate(network, z.cuda())
    assert_as_good_as_plain(actual=x.cpu(), plain=plain.cpu(), exact=exact)
    assert torch.allclose(x.cpu(), reference.evaluate(network, z), rtol=1e-4, atol=1e-4)


def test_the_shipped_network_on_both(fashion: torch.nn.Module) -> None:
    z = noise(range(8), (1, 28, 28))
    with engine_of("fashion", fashion, batch=(8,)) as on_gpu:
        x = on_gpu.sample(noise=z, label=1).cpu()
    with engine_of("fashion", module_of("fashion", "cpu"), batch=(8,), device="cpu") as on_cpu:
        by_cpu = on_cpu.sample(noise=z, label=1)
    assert (x - by_cpu).abs().max() <= 1e-3


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_as_good_as_plain_torch(fashion: torch.nn.Module, precision: str) -> None:
    from pfdiff.bench.measuring.peers import plain_program
    from pfdiff.engine.backends.casting import cast_copy

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    z = noise(range(8), (1, 28, 28), "cuda")
    label = torch.full((8,), 3, device="cuda")
    with engine_of("fashion", fashion, batch=(8,), precision=precision) as engine:
        x, schedule = engine.sample(noise=z, label=3), engine.programs[8]
    half, double = cast_copy(fashion, dtype, "cuda"), cast_copy(fashion, torch.float64, "cuda")
    plain = plain_program(half, schedule, dtype, (label,))(z)

    def network(x: torch.Tensor, t: float) -> torch.Tensor:
        return double(x, torch.full((8,), float(t), device="cuda", dtype=torch.float64), label)

    with torch.inference_mode():
        exact = schedule.evaluate(network, z.double())
    allowed = 2 * (plain.double() - exact).square().mean().sqrt()
    assert (x.double() - exact).square().mean().sqrt() <= allowed


def test_images_are_the_samples(fashion: torch.nn.Module) -> None:
    from pfdiff.kernels import eager

    with engine_of("fashion", fashion, batch=(1, 8)) as engine:
        x, pixels = engine.sample(seeds=range(8), label=7), engine.images(seeds=range(8), label=7)
    expected = torch.empty_like(pixels)
    eager.images(expected, x, -1.0, 1.0)
    assert pixels.device.type == "cuda"
    assert torch.equal(pixels, expected)


@pytest.mark.filterwarnings("ignore:backend 'torch' compiles")
def test_by_default_the_network_is_compiled_and_captured() -> None:
    with small_engine(compile=None) as engine, small_engine() as plain:
        assert engine.description.endswith("compiled")
        x = engine.sample(seeds=range(8), nfe=6, label=3)
        assert engine.execution == "one CUDA graph a batch"
        assert torch.equal(x, engine.sample(seeds=range(8), nfe=6, label=3))
        assert torch.allclose(x, plain.sample(seeds=range(8), nfe=6, label=3), rtol=1e-4, atol=1e-4)


# What happens inside a call.
def test_a_call_neither_waits_nor_allocates(fashion: torch.nn.Module) -> None:
    with engine_of("fashion", fashion, batch=(8,)) as engine:
        calls = calls_of_one_launch(lambda: engine.sample(seeds=range(8), label=1))
        assert launches(calls) <= 2  # the graph, and at most the copy of the result as a kernel
        assert sum(copies(calls).values()) <= 2  # seeds and conditions from the host, the result on the device
        assert allocator_requests(lambda: engine.sample(seeds=range(8), label=1)) <= 1  # the result


def test_the_launches_neither_wait_nor_allocate_where_the_network_does_not() -> None:
    """The loop itself, without a graph, under torch's own watch: a network that writes into what it has."""
    out = torch.zeros(8, *SHAPE, device="cuda")

    def network(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return torch.mul(x, 0.5, out=out[: len(x)])

    with small_engine(network, batch=(8,), graph=False) as engine:
        engine.sample(seeds=range(8), nfe=6)
        engine.images(seeds=range(8), nfe=6)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for sampler in samplers(engine):
                assert allocator_requests(sampler.launch) == 0
                assert not waits(runtime_calls(sampler.launch))
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_any_stream_may_call() -> None:
    with small_engine() as engine:
        expected = engine.sample(seeds=range(8), nfe=6)
        torch.cuda.synchronize()
        results = []
        for _ in range(4):
            with torch.cuda.stream(torch.cuda.Stream()):
                results.append(engine.sample(seeds=range(8), nfe=6) * 2)
        torch.cuda.synchronize()
        for one in results:
            assert torch.equal(one, 2 * expected)


def test_two_engines_in_two_threads() -> None:
    results: dict[int, torch.Tensor] = {}
    errors: list[BaseException] = []

    def work(which: int) -> None:
        try:
            with small_engine(batch=(1, 2, 4, 8)) as engine:
                found = [engine.sample(seeds=range(count), nfe=6, label=which) for count in (1, 2, 4, 8) * 5]
                results[which] = found[-1].clone()
        except BaseException as error:
            errors.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a capture may find the other thread busy and go on without a graph
        threads = [threading.Thread(target=work, args=(which,), daemon=True) for which in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=40)
    assert not any(thread.is_alive() for thread in threads), "a deadlock"
    assert not errors
    with small_engine() as engine:
        for which in (0, 1):
            expected = engine.sample(seeds=range(8), nfe=6, label=which)
            assert torch.allclose(results[which], expected, rtol=1e-6, atol=1e-6)


# What cannot be.
def test_a_network_that_synchronises_runs_without_a_graph() -> None:
    def network(x: torch.Tensor, t: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return torch.tanh(0.7 * x) + 0.001 * float(t[0])  # reads t back: refused inside a capture

    with small_engine(network) as engine, small_engine(network, graph=False) as eager:
        with pytest.warns(RuntimeWarning, match="cannot be captured in a CUDA graph"):
            x = engine.sample(seeds=range(8), nfe=4)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            engine.sample(seeds=[3], nfe=4)
        assert engine.execution.startswith("kernel by kernel, not captured: ")
        assert torch.equal(x, eager.sample(seeds=range(8), nfe=4))
    with small_engine() as engine:  # the refused capture left nothing behind
        assert engine.sample(seeds=[1], nfe=4).isfinite().all()
        assert engine.execution == "one CUDA graph a batch"


def test_inside_somebody_elses_capture() -> None:
    with small_engine() as engine:
        engine.sample(seeds=[1], nfe=4)
        graph, x = torch.cuda.CUDAGraph(), torch.zeros(4, device="cuda")
        with torch.cuda.graph(graph):
            with pytest.raises(BackendError, match="is being captured in a CUDA graph, and an engine brings its own"):
                engine.sample(seeds=[1], nfe=4)
            x.add_(1)
        assert engine.sample(seeds=[1], nfe=4).isfinite().all()


def test_too_large_a_batch_says_what_fits() -> None:
    elements = 64 << 20

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * 0.5

    contract = replace(CONTRACT, conditions=(), shape=(elements,))
    artifact = Artifact(Path("large"), contract, (1 << 16,), "fp32", {4: program(4, contract)})
    with Engine.open(artifact, device="cuda", backend="torch", module=network) as engine:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with pytest.raises(
            BackendError, match=r"batch 65536 needs \d+ MiB .* the largest batch that fits is \d+, build"
        ):
            engine.sample(seeds=[1], nfe=4)
        assert torch.cuda.max_memory_allocated() < before + 2**30


def test_samples_that_are_not_finite_are_found_at_the_first_call() -> None:
    with (
        small_engine(Small(float("nan"))) as engine,
        pytest.raises(BackendError, match="the samples are not finite: the network overflows in fp32 or gives NaN"),
    ):
        engine.sample(seeds=[1], nfe=4)


def test_graphs_are_dropped_oldest_first() -> None:
    with small_engine() as engine:
        loop = engine._session._loop
        assert isinstance(loop, CudaLoop)
        loop._largest = 2
        expected = engine.sample(seeds=[1], nfe=4)
        for nfe, count in ((6, 1), (4, 8), (6, 8)):
            engine.sample(seeds=range(count), nfe=nfe)
        assert len(samplers(engine)) == 2
        assert torch.equal(engine.sample(seeds=[1], nfe=4), expected)


def test_inputs_may_be_on_the_device() -> None:
    tables_inputs = Inputs(None, noise([1], SHAPE, "cuda").reshape(1, -1), ())
    assert tables_inputs.count == 1
    with small_engine() as engine:
        label = torch.tensor([4], device="cuda")
        x = engine.sample(noise=noise([1], SHAPE, "cuda"), nfe=4, label=label)
        assert x.device.type == "cuda"
        assert torch.equal(x, engine.sample(noise=noise([1], SHAPE, "cuda").cpu(), nfe=4, label=4))
        shift = torch.full((1, 3, 1), 0.25, device="cuda")
        calls = runtime_calls(lambda: engine.sample(noise=noise([1], SHAPE, "cuda"), nfe=4, label=label, shift=shift))
        assert not waits(calls), calls
        assert torch.equal(
            engine.sample(seeds=[1], nfe=4, label=label, shift=shift),
            engine.sample(seeds=[1], nfe=4, label=4, shift=shift.cpu()),
        )
        wrong = torch.tensor([10**6], device="cuda")
        with pytest.raises(InputError, match="'label'"):  # a kind of batch that was not run yet: values are looked at
            engine.sample(seeds=range(8), nfe=6, label=wrong.expand(8))
