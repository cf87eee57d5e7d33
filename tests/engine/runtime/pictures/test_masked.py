"""Masks: every loop equals the program with its network's input replaced; what is kept is the picture itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pfdiff
from pfdiff.engine.backends.abstract import NetworkFiles
from pfdiff.engine.backends.torch_cuda import TorchCuda
from pfdiff.engine.compiler.part import last_part
from pfdiff.engine.compiler.program import Program
from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.engine.runtime import cpu_loop
from pfdiff.engine.runtime.cuda.batch import BatchKind, CudaBatch, bytes_needed
from pfdiff.engine.runtime.draws import Draws
from pfdiff.engine.runtime.inputs import Inputs
from pfdiff.engine.runtime.loop import make_tables
from pfdiff.engine.runtime.noise import noise
from pfdiff.engine.runtime.pictures.masked import Masked, mask_of
from pfdiff.engine.runtime.session import Session

from ....small.engine import CONTRACT, SHAPE, program, small, write_engine
from ..test_session import Direct

PLAIN = replace(CONTRACT, conditions=())
SEEDS = [3, 2**64 - 1, 0]
KEYS = np.array(SEEDS, np.uint64)
ELEMENTS = int(np.prod(SHAPE))
SOLVERS = ("ddim", "pfdiff:k=2,l=1", "dpm++:2m", "unipc:order=3", "heun", "ddpm", "sa")


def coupled(x: Any, t: Any) -> Any:
    """`small` of neighbours together, so that what is kept reaches what is drawn."""
    return small(0.7 * x + 0.3 * x.roll(1, -1), t)


def known() -> tuple[torch.Tensor, torch.Tensor]:
    """A picture float32 [3, *shape] and a mask uint8 of the same shape, constant over channels."""
    generator = torch.Generator().manual_seed(5)
    picture = torch.randn(3, *SHAPE, generator=generator).clamp(-1, 1)
    mask = torch.randint(0, 2, (3, 1, *SHAPE[1:]), generator=generator, dtype=torch.uint8)
    return picture, mask.expand(-1, SHAPE[0], -1, -1).contiguous()


def reference(
    made: Program,
    z: torch.Tensor,
    picture: torch.Tensor,
    mask: torch.Tensor,
    network: Callable[[torch.Tensor, float], torch.Tensor] = small,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """In float64: before each evaluation but the first, the input is alpha x_0 + sigma eps where the mask is 0."""
    schedule, eps, x_0 = parse_schedule(made.schedule), z.double(), picture.double()
    times, at = made.network_times.tolist(), iter(made.times.tolist())

    def replaced(x: torch.Tensor, t: float) -> torch.Tensor:
        time = next(at)
        if time == made.times[0]:
            return network(x, t)
        scale = float(made.c_in[times.index(t)])
        kept = scale * (float(schedule.alpha(time)) * x_0 + float(schedule.sigma(time)) * eps)
        return network(torch.where(mask != 0, x, kept), t)

    begun = eps if start is None else start.double()
    found = made.evaluate(replaced, begun, seeds=SEEDS if made.noises else None)
    return torch.where(mask != 0, found, x_0)


def inputs(seeds: list[int] | None = None, given: torch.Tensor | None = None) -> Inputs:
    picture, mask = known()
    rows = slice(None) if seeds is None else [SEEDS.index(seed) for seed in seeds]
    keys = KEYS if seeds is None else np.array(seeds, np.uint64)
    masked = Masked(picture[rows].reshape(len(keys), -1), mask[rows].reshape(len(keys), -1))
    if given is not None:
        return Inputs(None, given.reshape(3, -1), (), draws=Draws(keys, None), masked=masked)
    return Inputs(keys, None, (), draws=Draws(keys, None), masked=masked)


def run(
    solver: str, seeds: list[int] | None = None, buckets: tuple[int, ...] = (1, 8), **settings: Any
) -> torch.Tensor:
    made = program(6, PLAIN, solver=solver, **settings)
    given = inputs(seeds)
    given = given if made.noises else replace(given, draws=None)
    return Session(Direct(coupled), PLAIN, buckets).run(make_tables(made, PLAIN), given)


@pytest.mark.usefixtures("walk")
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_cpu_loop_equals_the_program(solver: str, clip: float | None) -> None:
    picture, mask = known()
    made, x = program(6, PLAIN, solver=solver, clip=clip), run(solver, clip=clip)
    exact = reference(made, noise(SEEDS, SHAPE), picture, mask, coupled)
    torch.testing.assert_close(x.double(), exact, rtol=1e-4, atol=1e-4)
    assert torch.equal(x[mask == 0], picture[mask == 0])
    free = replace(inputs(), masked=None, draws=inputs().draws if made.noises else None)
    without = Session(Direct(coupled), PLAIN, (8,)).run(make_tables(made, PLAIN), free)
    assert not torch.allclose(x[mask != 0], without[mask != 0], rtol=1e-2)


@pytest.mark.usefixtures("walk")
@pytest.mark.parametrize("buckets", [(1,), (2,), (3,), (8,)])
def test_a_seed_is_one_image(buckets: tuple[int, ...]) -> None:
    alone = torch.cat([run("sa", [seed]) for seed in SEEDS])
    assert torch.equal(run("sa", buckets=buckets), alone)


@pytest.mark.skipif(cpu_loop.walk_compiled is None, reason="engine/runtime/_cpu.cpp was not compiled")
@pytest.mark.parametrize("solver", SOLVERS)
def test_both_ways_give_the_same_bits(solver: str, only_python: Callable[[], None]) -> None:
    compiled = run(solver)
    only_python()
    assert torch.equal(compiled, run(solver))


def test_the_next_call_has_no_mask_any_more() -> None:
    tables, session = make_tables(program(6, PLAIN), PLAIN), Session(Direct(coupled), PLAIN, (4,))
    free = replace(inputs(), masked=None, draws=None)
    before = session.run(tables, free)
    session.run(tables, replace(inputs(), draws=None))
    assert torch.equal(session.run(tables, free), before)


# On a CUDA device: the loop on CPU tensors, through plain torch and the kernels' interpreter.
def batch(made: Program, kind: BatchKind) -> CudaBatch:
    contract = replace(PLAIN, schedule=made.schedule, prediction=made.prediction)
    backend = TorchCuda(NetworkFiles(Path("none"), contract, coupled), torch.device("cpu"))
    return CudaBatch(backend, contract, make_tables(made, contract), kind)


@pytest.mark.parametrize("solver", ["pfdiff:k=2,l=1", "dpm++:2m", "sa"])
@pytest.mark.parametrize("schedule", ["linear:1000", "edm"])
def test_the_launches_equal_the_program(solver: str, schedule: str, ops: str) -> None:
    """edm scales the network's input, which then has a buffer of its own."""
    contract = replace(PLAIN, schedule=schedule, prediction="edm" if schedule == "edm" else "eps")
    made, z = program(5, contract, solver=solver), noise(SEEDS, SHAPE)
    launches = batch(made, BatchKind(4, False, False, masked=True))
    for _ in range(2):  # the second run starts from what the first one left
        launches.load(inputs(given=z))
        launches.run()
    picture, mask = known()
    exact = reference(made, z, picture, mask, coupled)
    torch.testing.assert_close(launches.result[:3].double(), exact, rtol=2e-4, atol=2e-4)
    assert torch.equal(launches.result[:3][mask == 0], picture[mask == 0])
    assert torch.equal(launches.result[3], launches.result[2])


@pytest.mark.parametrize("masked", [False, True])
def test_draws_may_be_given_on_the_device(masked: bool, ops: str) -> None:
    made, z = program(5, PLAIN, solver="sa"), noise(SEEDS, SHAPE)
    xi = torch.randn(made.noises, 3, ELEMENTS, generator=torch.Generator().manual_seed(1))
    launches = batch(made, BatchKind(4, False, False, given=True, masked=masked))
    some = inputs(given=z)
    launches.load(replace(some, draws=Draws(None, xi), masked=some.masked if masked else None))
    launches.run()
    if masked:
        picture, mask = known()
        assert torch.equal(launches.result[:3][mask == 0], picture[mask == 0])
        return
    exact = made.evaluate(coupled, z.double(), steps_noise=xi.view(-1, 3, *SHAPE).double())
    torch.testing.assert_close(launches.result[:3].double(), exact, rtol=1e-4, atol=1e-4)


def test_a_batch_without_a_mask_is_what_it_was() -> None:
    made = program(5, PLAIN)
    plain, tables = batch(made, BatchKind(4, True, False)), make_tables(made, PLAIN)
    assert (plain.extras.kept, plain.extras.xi) == (None, None)
    assert {one.keeps for one in plain.updates} == {0}
    without, with_mask = (
        bytes_needed(tables, PLAIN, BatchKind(4, True, False, masked=one), torch.float32) for one in (False, True)
    )
    assert with_mask - without == 4 * 5 * ELEMENTS  # a float of the picture and a byte of the mask


# The engine's own call.
@pytest.fixture
def engine(tmp_path: Path) -> Any:
    path = write_engine(tmp_path / "small.engine", nfe=(4,), solver="pfdiff:k=2,l=1").path
    with pfdiff.load(path, backend="onnxruntime") as loaded:
        yield loaded


def test_at_strength_1_sampling_starts_from_noise(engine: Any) -> None:
    picture, mask = known()
    plane = mask[:, 0]
    x = engine.sample(image=picture, mask=plane, seeds=SEEDS)
    exact = reference(engine.programs[4], noise(SEEDS, SHAPE), picture, mask)
    torch.testing.assert_close(x.double(), exact, rtol=1e-4, atol=1e-4)
    assert torch.equal(engine.sample(image=picture, mask=plane.numpy() * 255, seeds=SEEDS, strength=1.0), x)
    assert torch.equal(engine.sample(image=picture, mask=plane != 0, noise=noise(SEEDS, SHAPE)), x)
    assert torch.equal(engine.sample(image=picture[1], mask=plane[1], seeds=SEEDS[1:2])[0], x[1])


def test_a_part_of_the_way_with_a_mask(engine: Any) -> None:
    picture, mask = known()
    x = engine.sample(image=picture, mask=mask[:, 0].float(), seeds=SEEDS, strength=0.6)
    part, z = last_part(engine.programs[4], 0.6), noise(SEEDS, SHAPE).double()
    schedule = parse_schedule(part.schedule)
    alpha, sigma = (float(one(part.times[0])) for one in (schedule.alpha, schedule.sigma))
    start = (alpha * picture.double() + sigma * z) / part.table[0, 0]
    torch.testing.assert_close(x.double(), reference(part, z, picture, mask, start=start), rtol=1e-4, atol=1e-4)
    assert torch.equal(x[mask == 0], picture[mask == 0])
    everything = engine.sample(image=picture, mask=np.ones(SHAPE[1:]), seeds=SEEDS, strength=0.6)
    assert torch.equal(everything, engine.sample(image=picture, seeds=SEEDS, strength=0.6))
    nothing = engine.sample(image=picture, mask=np.zeros(SHAPE[1:], bool), seeds=SEEDS)
    assert torch.equal(nothing, picture)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (
            np.ones((4, 4)),
            "mask: got float64 [4, 4], expected [3, 5], or one for each sample, [3, 3, 5]; resize it to 5",
        ),
        (np.ones((2, 3, 5)), "or one for each sample, [3, 3, 5]; give 1 or 3"),
        (np.full((3, 5), 2), "mask has values 2 to 2, expected 0 and 1, or uint8 0 to 255"),
        (np.full((3, 5), -0.5), "mask has values outside 0 to 1"),
        (np.full((3, 5), np.nan), "mask has values outside 0 to 1"),
        (np.ones((3, 5), complex), "mask of complex numbers"),
        ("sky.png", "mask of type str, expected an array [H, W]"),
    ],
)
def test_masks_that_do_not_fit_are_refused(engine: Any, mask: Any, says: str) -> None:
    with pytest.raises(pfdiff.InputError) as caught:
        engine.sample(image=known()[0], mask=mask, seeds=SEEDS)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mask_needs_a_picture(engine: Any) -> None:
    with pytest.raises(pfdiff.InputError, match="mask without a picture to keep a part of; give image="):
        engine.sample(mask=np.ones((3, 5)), seeds=SEEDS)


def test_floats_in_0_to_255_are_no_picture(engine: Any) -> None:
    bright = np.linspace(0, 255, ELEMENTS, dtype=np.float32).reshape(1, *SHAPE)
    with pytest.raises(pfdiff.InputError, match=r"image: got floats in 0\.\.255, expected samples in -1\.\.1; scale"):
        engine.sample(image=bright, strength=0.5, seeds=[3])
    engine.sample(image=bright / 127.5 - 1 + 0.6, strength=0.5, seeds=[3])  # what overshoots is taken


def test_a_pictures_mask_becomes_that_of_its_latents() -> None:
    """The nearest element, as torch has it: the upper left one of each square. Halves are white."""
    contract = replace(PLAIN, shape=(4, 2, 2))
    mask = np.zeros((4, 4), np.uint8)
    mask[0, 2], mask[2, 0], mask[3, 3] = 128, 127, 255
    found = mask_of(mask, (3, 4, 4), contract, 1)
    assert found.dtype == torch.uint8
    assert found.view(4, 2, 2).tolist() == 4 * [[[0, 1], [0, 0]]]
    ones = mask_of(torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8), (3, 4, 4), contract, 1)
    assert ones.view(4, 2, 2)[0].tolist() == [[1, 0], [0, 1]]
    with pytest.raises(pfdiff.InputError, match=r"expected \[4, 4\], \[2, 2\] of latents, or one"):
        mask_of(np.ones((3, 3)), (3, 4, 4), contract, 1)


def test_a_network_may_have_a_condition_of_that_name(tmp_path: Path) -> None:
    """Then the word means this."""
    from pfdiff.engine.runtime.asked import Asked

    contract = replace(CONTRACT, conditions=(replace(CONTRACT.conditions[0], name="mask"),))
    asked, conditions = Asked(mask=3).without(contract, {})
    assert asked.mask is None
    assert conditions == {"mask": 3}
