"""Programs that draw noise on a CPU: equal to the reference, a seed is one image, what is given is checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pfdiff
from pfdiff.engine.compiler.part import last_part
from pfdiff.engine.philox import fill_numpy
from pfdiff.engine.runtime import cpu_loop as host_loop
from pfdiff.engine.runtime.draws import Draws
from pfdiff.engine.runtime.inputs import Inputs
from pfdiff.engine.runtime.loop import make_tables
from pfdiff.engine.runtime.noise import noise
from pfdiff.engine.runtime.session import Session

from ...comparator import assert_as_good_as_plain
from ...small.engine import SHAPE, program, small, write_engine
from .test_session import PLAIN, Direct

pytestmark = pytest.mark.usefixtures("walk")
SEEDS = np.array([3, 2**64 - 1, 0, 5, 6], np.uint64)
SOLVERS = (
    "ddpm",
    "dpm++:sde",
    "dpm++:3m-sde",
    "sa:tau=0.5",
    "lcm",
    "tcd:gamma=0.5",
    "tada:variables=4",
    "pfdiff:eta=0.5",
)
ELEMENTS = int(np.prod(SHAPE))


def run(solver: str, seeds: Any = SEEDS, *, buckets: tuple[int, ...] = (1, 8), **settings: Any) -> torch.Tensor:
    keys = np.asarray(seeds, np.uint64)
    tables = make_tables(program(5, PLAIN, solver=solver, **settings), PLAIN)
    inputs = Inputs(keys, None, (), draws=Draws(keys, None))
    return Session(Direct(), PLAIN, buckets).run(tables, inputs)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_loop_equals_the_program(solver: str, clip: float | None) -> None:
    x, reference = run(solver, clip=clip), program(5, PLAIN, solver=solver, clip=clip)
    assert reference.noises >= 3
    z, seeds = noise(SEEDS.tolist(), SHAPE), SEEDS.tolist()
    plain = reference.evaluate(small, z, seeds=seeds)
    exact = reference.evaluate(small, z.double(), seeds=seeds)
    assert_as_good_as_plain(actual=x, plain=plain, exact=exact)


@pytest.mark.parametrize("buckets", [(1,), (2,), (3,), (8,), (5,)])
def test_a_seed_is_one_image(buckets: tuple[int, ...]) -> None:
    alone = torch.cat([run("sa", [seed]) for seed in SEEDS])
    assert torch.equal(run("sa", buckets=buckets), alone)


@pytest.mark.skipif(host_loop.walk_compiled is None, reason="engine/runtime/_cpu.cpp was not compiled")
@pytest.mark.parametrize("solver", SOLVERS)
def test_both_ways_give_the_same_bits(
    solver: str, monkeypatch: pytest.MonkeyPatch, only_python: Callable[[], None]
) -> None:
    monkeypatch.undo()
    compiled = run(solver)
    only_python()
    assert torch.equal(compiled, run(solver))


def test_a_clipped_and_a_decoded_loop_draw_once() -> None:
    """What one call drew is gone in the next."""
    tables = make_tables(program(5, PLAIN, solver="ddpm", clip=1.0), PLAIN)
    session = Session(Direct(), PLAIN, (4,))
    inputs = Inputs(SEEDS[:3], None, (), draws=Draws(SEEDS[:3], None))
    first = session.run(tables, inputs)
    session.run(tables, Inputs(SEEDS[2:], None, (), draws=Draws(SEEDS[2:], None)))
    assert torch.equal(session.run(tables, inputs), first)


# The engine's own call.
@pytest.fixture
def engine(tmp_path: Path) -> Any:
    path = write_engine(tmp_path / "small.engine", nfe=(4,), solver="ddpm", grid="trailing").path
    with pfdiff.load(path, backend="onnxruntime") as loaded:
        yield loaded


def xi_of(seeds: list[int], nfe: int = 4) -> torch.Tensor:
    xi = np.empty((nfe - 1, len(seeds), ELEMENTS), np.float32)
    for n in range(nfe - 1):
        fill_numpy(xi[n], np.array(seeds, np.uint64), n + 1)
    return torch.from_numpy(xi).view(nfe - 1, len(seeds), *SHAPE)


def test_noise_and_draws_may_be_given(engine: Any) -> None:
    seeds = [4, 9]
    x = engine.sample(seeds=seeds)
    assert torch.equal(engine.sample(noise=noise(seeds, SHAPE), seeds=seeds), x)
    assert torch.equal(engine.sample(noise=noise(seeds, SHAPE), steps_noise=xi_of(seeds)), x)
    assert torch.equal(engine.sample(seeds=seeds, steps_noise=xi_of(seeds).numpy()), x)
    other = engine.sample(noise=noise(seeds, SHAPE), seeds=[4, 10])
    assert torch.equal(other[0], x[0])
    assert not torch.equal(other[1], x[1])
    assert engine.sample(seeds=[]).shape == (0, *SHAPE)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"noise": np.zeros((2, *SHAPE))}, "which draws 3 more on the way; give seeds= beside it, one a sample"),
        ({"noise": np.zeros((2, *SHAPE)), "seeds": [1]}, "1 seeds beside noise for 2 samples; give one a sample"),
        ({"seeds": [1], "steps_noise": np.zeros((3, 2, *SHAPE))}, "takes floats of shape [3, 1, 2, 3, 5]"),
        ({"seeds": [1], "steps_noise": np.zeros((3, 1, *SHAPE), int)}, "of torch.int64; ddpm takes floats"),
        ({"seeds": [1], "steps_noise": np.full((3, 1, *SHAPE), np.nan)}, "NaN or infinite values"),
        ({"seeds": [1], "steps_noise": "some"}, "steps_noise of type str"),
        ({"steps_noise": np.zeros((3, 1, *SHAPE))}, "got neither of seeds and noise"),
    ],
)
def test_what_does_not_determine_the_draws_is_refused(engine: Any, given: dict[str, Any], says: str) -> None:
    with pytest.raises(pfdiff.InputError) as caught:
        engine.sample(**given)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_deterministic_programs_take_no_draws(tmp_path: Path) -> None:
    path = write_engine(tmp_path / "small.engine", nfe=(4,), solver="ddim", grid="trailing").path
    with pfdiff.load(path, backend="onnxruntime") as engine:
        with pytest.raises(pfdiff.InputError, match="got both of seeds and noise"):
            engine.sample(seeds=[1], noise=np.zeros((1, *SHAPE)))
        with pytest.raises(pfdiff.InputError, match=r"ddim takes floats of shape \[0, 1, 2, 3, 5\]"):
            engine.sample(seeds=[1], steps_noise=np.zeros((3, 1, *SHAPE)))


def test_a_start_from_a_picture_draws_from_the_seeds_too(engine: Any) -> None:
    """The last part of the way is a program of its own, whose draws begin at 1."""
    picture = 0.1 * np.ones((1, *SHAPE), np.float32)
    x = engine.sample(image=picture, strength=0.5, seeds=[4, 9])
    assert torch.equal(engine.sample(image=picture, strength=0.5, seeds=[9])[0], x[1])
    part = last_part(engine.programs[4], 0.5, whole=False)
    assert part.noises >= 1
    times = part.times
    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    a = float(alphas[int(times[0])])
    start = np.sqrt(a) * picture + np.sqrt(1 - a) * noise([4, 9], SHAPE).double().numpy()
    expected = part.evaluate(small, torch.from_numpy(start) / part.table[0, 0], seeds=[4, 9])
    torch.testing.assert_close(x.double(), expected, rtol=1e-4, atol=1e-4)
