"""The whole schedule on a real GPU: captured, replayed, poisoned.

What CPU tensors cannot show: that a replay gives the bits of the launches it recorded, and that it reads nothing but
its inputs. What a call asks of the driver is in test_calls_gpu.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pfdiff.bench.measuring.gpu_engines import engine_of, module_of
from pfdiff.engine.backends.abstract import CudaOptions
from pfdiff.engine.runtime.noise import noise

from ..comparator import assert_as_good_as_plain
from ..small.engine import SHAPE, program, small
from .captured import samplers, small_engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs an NVIDIA GPU with a driver and a CUDA build of torch"
    ),
]

SOLVERS = ["ddim", "pfdiff:k=2,l=1", "dpm++:2m", "dpm-solver:order=3", "pfdiff:k=1,l=1,base=dpm-solver-2"]


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
