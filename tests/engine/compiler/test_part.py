"""The last part of a way: the same steps where it is cut at a point, and the exact solution between points."""

from __future__ import annotations

import numpy as np
import pytest

import pfdiff
from pfdiff.engine.compiler.part import last_part
from pfdiff.engine.compiler.schedule import parse_schedule

SOLVERS = ["ddim", "dpm++:2m", "unipc:order=2", "pfdiff:k=2,l=1", "heun", "dpm-solver:order=2"]


@pytest.mark.parametrize("solver", SOLVERS)
def test_all_of_a_way_is_the_way(solver: str) -> None:
    program = pfdiff.compile(solver, "linear:1000", nfe=6, grid="logsnr")
    for whole in (False, True):
        part = last_part(program, 1.0, whole=whole)
        np.testing.assert_array_equal(part.times, program.times)
        np.testing.assert_allclose(part.table, program.table, atol=1e-12)


@pytest.mark.parametrize("strength", [0.4, 0.5, 0.61, 0.8])
def test_diffusers_count_leaves_out_the_first_steps(strength: float) -> None:
    """DDIM on the last int(nfe strength) of its points."""
    program = pfdiff.compile("ddim", "scaled_linear:1000", nfe=8, grid="leading:offset=1")
    part = last_part(program, strength, whole=True)
    assert part.nfe == int(8 * strength)
    np.testing.assert_array_equal(part.times, program.times[8 - part.nfe :])


@pytest.mark.parametrize(
    ("nfe", "strength", "count"),
    [(4, 0.3, 2), (8, 0.3, 3), (4, 0.6, 3), (8, 0.6, 5), (5, 0.6, 3), (10, 0.7, 7), (1, 0.5, 1)],
)
def test_on_flows_diffusers_count_rounds_up(nfe: int, strength: float, count: int) -> None:
    """Their pipelines of flows leave out the first int(nfe - nfe strength) steps."""
    program = pfdiff.compile("ddim", "flow:shift=3", nfe=nfe, grid="uniform", prediction="flow")
    part = last_part(program, strength, whole=True)
    assert part.nfe == count
    np.testing.assert_allclose(part.times, program.times[nfe - count :], rtol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("schedule", ["linear:1000", "flow:shift=3", "edm"])
def test_all_evaluations_walk_the_part(solver: str, schedule: str) -> None:
    grid = {"linear:1000": "logsnr", "flow:shift=3": "uniform", "edm": "karras:rho=7"}[schedule]
    start = {"flow:shift=3": 0.99} if solver == "dpm-solver:order=2" else {}  # it cannot start where alpha is 0
    prediction = "flow" if schedule.startswith("flow") else "eps"
    program = pfdiff.compile(solver, schedule, nfe=6, grid=grid, prediction=prediction, t_start=start.get(schedule))
    part = last_part(program, 0.5)
    assert part.nfe == 6
    assert program.times[-1] <= part.times[0] < program.times[0]
    if solver in ("ddim", "dpm++:2m", "unipc:order=2"):  # they evaluate at every point but the last
        assert np.all(np.diff(part.times) < 0)
        assert part.times[-1] >= parse_schedule(schedule).first


def test_points_are_drawn_apart_evenly() -> None:
    """Trailing times 999, 799, ... 199, clean: half of the way starts between 599 and 399."""
    part = last_part(pfdiff.compile("ddim", "linear:1000", nfe=5, grid="trailing"), 0.5)
    np.testing.assert_array_equal(part.times, [499, 399, 299, 199, 100])
    part = last_part(pfdiff.compile("ddim", "linear:1000", nfe=1, grid="trailing"), 0.6)
    np.testing.assert_array_equal(part.times, [599])


@pytest.mark.parametrize("nfe", [20, 40])
def test_a_point_of_data_is_reached(nfe: int) -> None:
    """Of data that is one point c, eps is (x - alpha c) / sigma, and every start x_t = alpha c + sigma z ends at c."""
    schedule = "vp"
    program = pfdiff.compile("ddim", schedule, nfe=nfe, grid="logsnr")
    part = last_part(program, 0.6)
    process, c, z = parse_schedule(schedule), 0.7, np.array([0.3, -1.2])

    def network(x: np.ndarray, t: float) -> np.ndarray:
        return (x - float(process.alpha(t)) * c) / float(process.sigma(t))

    start = float(part.times[0])
    x_t = float(process.alpha(start)) * c + float(process.sigma(start)) * z
    found = part.evaluate(network, x_t / float(part.table[0, 0]))
    np.testing.assert_allclose(found, c, atol=1e-9)


def test_too_little_is_said() -> None:
    program = pfdiff.compile("ddim", "linear:1000", nfe=2, grid="uniform")
    with pytest.raises(pfdiff.InputError, match=r"strength 0.4 of 2 evaluations is none; give more of either"):
        last_part(program, 0.4, whole=True)


@pytest.mark.parametrize("solver", ["analytic-ddpm", "pfdiff:k=2,l=1,base=analytic-ddim"])
def test_variances_of_other_steps_are_refused(solver: str) -> None:
    joint = "," if ":" in solver else ":"
    program = pfdiff.compile(f"{solver}{joint}x0_var=0.4/0.3/0.2/0.1", "linear:1000", 4, grid="trailing")
    for whole in (True, False):
        with pytest.raises(pfdiff.InputError, match="has variances of its own steps") as caught:
            last_part(program, 0.5, whole=whole)
        assert str(caught.value).startswith(f"{solver} has")
