"""Order of convergence on exact solutions: the slope of log error against log intervals, within 0.25 of the theory."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import pfdiff
from pfdiff.engine.compiler.schedule import parse_schedule

from ...oracle import Mixture

START, END = 0.8, 0.25  # of the continuous VP schedule
NOISE = np.linspace(-1.7, 1.7, 9)

# Solver -> (order, grid it is claimed on).
ORDERS = {
    "ddim": 1,
    "dpm-solver:order=1": 1,
    "dpm-solver:order=2": 2,
    "dpm-solver:order=3": 3,
    "dpm++:2m": 2,
    "dpm++:1s": 1,
    "dpm++:2s": 2,
    "dpm++:3s": 3,
    "dpm-solver:2m": 2,
    "dpm-solver:3m": 2,  # the authors' code halves the second difference
    "dpm++:3m": 2,
    "deis:order=1": 1,
    "deis:order=2": 2,
    "deis:order=2,variant=rho": 2,
    "ab:order=2": 2,
    "ipndm:order=1": 1,
    "ipndm:order=2": 2,
    "unipc:order=1": 2,  # the corrector adds one
    "unipc:order=1,variant=bh1,form=eps": 2,
    "heun": 2,
    "edm": 2,  # its one Euler step at the end is as good: an error of h^2, once
    "pfdiff:k=1,l=1": 2,  # the springboard lies in the middle of its block
    "pfdiff:k=2,l=1": 1,
    "pfdiff:k=2,l=1.5": 2,
    "pfdiff:k=2,l=2": 1,
    "pfdiff:k=3,l=1": 1,
    "pfdiff:k=3,l=2": 2,
    "pfdiff:k=3,l=3": 1,
    "pfdiff:k=1,l=1,use=past": 1,
    "pfdiff:k=1,l=1,use=future": 2,
    "pfdiff:k=2,l=1,use=future": 1,
    # Over higher orders the springboard is made of old answers and never corrected from the anchor.
    "pfdiff:k=1,l=1,base=dpm-solver-2": 1,
    "pfdiff:k=2,l=1,base=dpm-solver-3": 1,
    "pfdiff:k=1,l=1,base=dpm++2s": 1,
    "pfdiff:k=2,l=1,base=dpm++3s": 1,
    "pfdiff:k=1,l=1,base=heun": 1,
}

# Multistep methods of order 3 and 4 start with one Euler step, an error of h^2. What their order says shows when the
# first steps are short, of lengths h^2, h^(4/3), h.
GRADED_ORDERS = {
    "deis:order=3": 3,
    "deis:order=4": 4,
    "deis:order=3,variant=rho": 3,
    "deis:order=4,variant=rho": 4,
    "ab:order=3": 3,
    "ab:order=4": 4,
    "unipc:order=2": 3,
    "unipc:order=2,variant=bh1": 3,
    "unipc:order=2,form=eps": 3,
    "unipc:order=3": 4,
    "unipc:order=3,form=eps": 4,
    "dpm++:3m": 2,  # still: not the start, the halved difference
}


@cache
def exact(components: int) -> np.ndarray:
    return Mixture.of("vp", components).flow(NOISE, START, END)


@cache
def flow_end() -> np.ndarray:
    return Mixture.of("flow", 3).flow(NOISE, 0.9, 0.2)


def graded(steps: int) -> list[float]:
    """Times even in lambda but for the first steps."""
    h = 1 / (steps - 3)
    vp, points = parse_schedule("vp"), np.cumsum([0, h**2, h ** (4 / 3), *[h] * (steps - 2)])
    lam = np.interp(points / points[-1], [0, 1], vp.lam([START, END]))
    return [START, *vp.time_from_lambda(lam[1:-1]), END]


def slope(solver: str, components: int, basis: str = "eps", counts=(12, 24, 48, 96), start: str = "even") -> float:
    oracle = Mixture.of("vp", components)
    errors = []
    for count in counts:
        nfe = count - (solver == "edm")
        grid = graded(count) if start == "graded" else "logsnr"
        program = pfdiff.compile(solver, "vp", nfe, grid=grid, basis=basis, t_start=START, end=END)
        errors.append(np.abs(program.evaluate(oracle.network(), NOISE) - exact(components)).max())
    assert errors[-1] < 0.04
    return -np.polyfit(np.log(counts[1:]), np.log(errors[1:]), 1)[0]


@pytest.mark.parametrize("components", [1, 3], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("solver", ORDERS)
def test_order(solver, components):
    assert slope(solver, components) == pytest.approx(ORDERS[solver], abs=0.25)


@pytest.mark.parametrize("solver", GRADED_ORDERS)
def test_order_after_a_graded_start(solver):
    assert slope(solver, 3, counts=(24, 48, 96, 192), start="graded") == pytest.approx(GRADED_ORDERS[solver], abs=0.25)


@pytest.mark.parametrize("solver", ["ab:order=4", "ipndm:order=3", "ipndm:order=4"])
def test_one_euler_step_leaves_order_2(solver):
    assert slope(solver, 3, counts=(96, 192, 384), start="even") == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize(
    ("solver", "basis", "order"),
    [
        ("ddim", "x0", 1),
        ("ddim", "v", 1),
        ("pfdiff:k=1,l=1", "x0", 2),
        ("pfdiff:k=3,l=2", "x0", 2),
        # v turns with the point it was found at: held at the anchor it is a first-order slope.
        ("pfdiff:k=1,l=1", "v", 1),
        ("deis:order=2", "x0", 2),
        ("ipndm:order=2", "x0", 2),
        ("heun", "x0", 2),
    ],
)
def test_order_in_other_bases(solver, basis, order):
    assert slope(solver, 3, basis) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("solver", ["pfdiff:k=1,l=1", "deis:order=2", "ab:order=2", "ipndm:order=2", "heun"])
def test_order_in_the_velocity_of_a_flow(solver):
    # Euler in t is exact for a constant velocity, so the middle is the middle in t: uniform grid, order 2.
    oracle = Mixture.of("flow", 3)
    end, errors, counts = flow_end(), [], [24, 48, 96]
    for nfe in counts:
        program = pfdiff.compile(
            solver, "flow", nfe, grid="uniform", prediction="flow", t_start=0.9, end=0.2, basis="v"
        )
        # Sampling starts at sigma_0.9 times the noise it is given.
        errors.append(np.abs(program.evaluate(oracle.network("flow"), NOISE / 0.9) - end).max())
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(2, abs=0.25)
