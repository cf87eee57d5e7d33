"""Order of convergence on exact solutions: the slope of log error against log intervals, within 0.25 of the theory."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import pfdiff

from .oracle import Mixture

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
}


@cache
def exact(components: int) -> np.ndarray:
    return Mixture.of("vp", components).flow(NOISE, START, END)


def slope(solver: str, components: int, basis: str = "eps") -> float:
    oracle = Mixture.of("vp", components)
    counts, errors = [12, 24, 48, 96], []
    for nfe in counts:
        program = pfdiff.compile(solver, "vp", nfe, grid="logsnr", basis=basis, t_start=START, end=END)
        errors.append(np.abs(program.evaluate(oracle.network(), NOISE) - exact(components)).max())
    assert errors[-1] < 0.04
    return -np.polyfit(np.log(counts[1:]), np.log(errors[1:]), 1)[0]


@pytest.mark.parametrize("components", [1, 3], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("solver", ORDERS)
def test_order(solver, components):
    assert slope(solver, components) == pytest.approx(ORDERS[solver], abs=0.25)


@pytest.mark.parametrize(
    ("solver", "basis", "order"),
    [
        ("ddim", "x0", 1),
        ("ddim", "v", 1),
        ("pfdiff:k=1,l=1", "x0", 2),
        ("pfdiff:k=3,l=2", "x0", 2),
        # v turns with the point it was found at: held at the anchor it is a first-order slope.
        ("pfdiff:k=1,l=1", "v", 1),
    ],
)
def test_order_in_other_bases(solver, basis, order):
    assert slope(solver, 3, basis) == pytest.approx(order, abs=0.25)


def test_order_in_the_velocity_of_a_flow():
    # Euler in t is exact for a constant velocity, so the middle is the middle in t: uniform grid, order 2.
    oracle = Mixture.of("flow", 3)
    end, errors, counts = oracle.flow(NOISE, 0.9, 0.2), [], [24, 48, 96]
    for nfe in counts:
        program = pfdiff.compile(
            "pfdiff:k=1,l=1", "flow", nfe, grid="uniform", prediction="flow", t_start=0.9, end=0.2, basis="v"
        )
        # Sampling starts at sigma_0.9 times the noise it is given.
        errors.append(np.abs(program.evaluate(oracle.network("flow"), NOISE / 0.9) - end).max())
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(2, abs=0.25)
