"""PFDiff against the algorithm written out a second time, numerically, from the paper and the authors' code."""

from __future__ import annotations

import re

import numpy as np
import pytest

import pfdiff
from pfdiff.engine.compiler.grid import make_grid
from pfdiff.engine.compiler.schedule import parse_schedule

from ...oracle import Mixture

SCHEDULE = parse_schedule("linear:1000")
ORACLE = Mixture.of("linear:1000", 3)
NOISE = np.random.default_rng(0).standard_normal((2, 3, 5))
VARIANTS = [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)]


def coefficients(t: int) -> tuple[float, float]:
    """sqrt(alphabar), sqrt(1 - alphabar) from the betas alone."""
    alphabar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    return (1.0, 0.0) if t == -1 else (float(alphabar[t]) ** 0.5, float(1 - alphabar[t]) ** 0.5)


def ddim(q, x, s, t, basis):
    """One DDIM step by the score q; with x0 stored, eps is derived again from the anchor (trap 5)."""
    (a_s, s_s), (a_t, s_t) = coefficients(s), coefficients(t)
    if basis == "eps":
        return a_t * (x - s_s * q) / a_s + s_t * q
    return a_t * q + s_t * (x - a_s * q) / s_s


def independent(t, k, l, network, x, basis):
    """Algorithm 1 of arXiv 2408.08822 with the tail rule of the authors' code; also returns the evaluation times."""
    asked = [t[0]]
    score = network(x, t[0])
    x = ddim(score, x, t[0], t[1], basis)
    i, last = 1, len(t) - 1
    while i < last:
        m = min(k + 1, last - i)
        jump = l if m == k + 1 else 1
        if m == 1:
            asked.append(t[i])
            score = network(x, t[i])
        else:
            spring = ddim(score, x, t[i], t[i + jump], basis)
            asked.append(t[i + jump])
            score = network(spring, t[i + jump])
        x = ddim(score, x, t[i], t[i + m], basis)
        i += m
    return x, asked


def random_times(count, seed):
    times = np.random.default_rng(seed).choice(np.arange(2, 998), count - 2, replace=False)
    return [999, *sorted(times.tolist(), reverse=True), -1]


@pytest.mark.parametrize("basis", ["eps", "x0"])
@pytest.mark.parametrize("kind", ["uniform", "quadratic", "random"])
@pytest.mark.parametrize(("k", "l"), VARIANTS)
def test_equals_the_algorithm(k, l, kind, basis):
    network = ORACLE.network(basis)
    for nfe in range(2, 21):
        intervals = (k + 1) * nfe - k
        grid = random_times(intervals + 1, nfe) if kind == "random" else kind
        times = [int(t) for t in make_grid(grid, SCHEDULE, intervals)]
        program = pfdiff.compile(f"pfdiff:k={k},l={l}", "linear:1000", nfe, grid=grid, basis=basis, prediction=basis)
        expected, asked = independent(times, k, l, network, NOISE, basis)
        assert program.times.tolist() == asked
        assert len(asked) == program.nfe == nfe
        # A chain of N steps from alpha = 0.006: 1e-9 of the largest state on the way.
        np.testing.assert_allclose(program.evaluate(network, NOISE), expected, rtol=1e-9, atol=1e-9)
        # A step in x0 to the clean point needs no anchor, so two evaluations in x0 get by with one buffer.
        assert program.buffers == (1 if nfe == 2 and basis == "x0" else 2)


@pytest.mark.parametrize(
    ("k", "l", "uniform", "quadratic"),
    [
        (1, 1, [999, 666, 333, 0], [800, 355, 88, 0]),
        (2, 2, [999, 666, 333, 0], [800, 355, 88, 0]),
        (3, 3, [999, 666, 333, 0], [800, 355, 88, 0]),
        (2, 1, [999, 777, 444, 111], [800, 483, 158, 9]),
        (3, 1, [999, 832, 499, 166], [800, 555, 200, 22]),
        (3, 2, [999, 749, 416, 83], [800, 450, 138, 5]),
    ],
)
def test_published_evaluation_times(k, l, uniform, quadratic):
    solver = f"pfdiff:k={k},l={l}"
    assert pfdiff.compile(solver, "linear:1000", 4, grid="uniform").times.tolist() == uniform
    assert pfdiff.compile(solver, "linear:1000", 4, grid="quadratic").times.tolist() == quadratic


def test_trap_1_first_step_covers_one_interval():
    times = [999, 900, 700, 500, 300, 100, 50, -1]  # k = 2, N = 3
    program = pfdiff.compile("pfdiff:k=2,l=1", "linear:1000", 3, grid=times)
    (a_s, s_s), (a_t, s_t) = coefficients(999), coefficients(700)
    # The first springboard, at t_1+l = 700, is the plain step to 900 and on to 700 by the same score.
    np.testing.assert_allclose(program.table[1], [a_t / a_s, s_t - a_t * s_s / a_s, 0, 0], rtol=1e-12, atol=1e-15)


def test_trap_2_the_grid_belongs_to_n_and_k():
    program = pfdiff.compile("pfdiff:k=1,l=1", "linear:1000", 6, grid="uniform")
    grid = make_grid("uniform", SCHEDULE, 11)
    assert program.times.tolist() == [grid[i] for i in (0, 2, 4, 6, 8, 10)]
    assert grid.tolist() == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99, 0, -1]


@pytest.mark.parametrize(("k", "l"), VARIANTS)
def test_trap_3_one_score_is_never_mixed_with_another(k, l):
    # In sigma/alpha against x/alpha every state moves by one score at a time: between two springboards lie the block's
    # own score and the one before, never more.
    program = pfdiff.compile(f"pfdiff:k={k},l={l}", "linear:1000", 6, grid="uniform")
    alphas = np.array([coefficients(int(t))[0] for t in program.times])
    normal = program.table[:-1] / alphas[:, None]
    moves = np.diff(normal, axis=0)
    assert all(set(np.flatnonzero(np.abs(m) > 1e-9)) <= {n, n + 1} for n, m in enumerate(moves))


def test_trap_4_the_update_starts_at_the_anchor():
    times = [999, 900, 700, 500, 300, 100, 50, -1]
    program = pfdiff.compile("pfdiff:k=2,l=1", "linear:1000", 3, grid=times)
    ratio = {t: coefficients(t)[1] / coefficients(t)[0] for t in times}
    # In x/alpha: d_1 acts from the anchor 900 to the end of its block at 300, not from the springboard at 700; the
    # springboard of the next block then lies at 100.
    row = program.table[2] / coefficients(100)[0]
    assert row[2] == pytest.approx(ratio[100] - ratio[900], rel=1e-9)
    assert row[1] == pytest.approx(ratio[900] - ratio[999], rel=1e-9)


def test_trap_4_higher_orders_start_at_the_springboard():
    solver = pfdiff.compile("pfdiff:k=1,l=1,base=dpm-solver-2", "vp", 4, grid="logsnr", end=0.1)
    # The second block's first evaluation is the springboard, and its second grows from there by d_2 alone.
    vp = parse_schedule("vp")
    s, t = solver.times[2:]
    p = float(vp.alpha(t) / vp.alpha(s))
    np.testing.assert_allclose(solver.table[3, :3], p * solver.table[2, :3], rtol=1e-9)


def test_trap_5_basis_matters_for_pfdiff_and_not_for_ddim():
    def sample(solver, basis):
        program = pfdiff.compile(solver, "linear:1000", 8, grid="uniform", basis=basis)
        return program.evaluate(ORACLE.network(), NOISE)

    for basis in ("x0", "v"):
        np.testing.assert_allclose(sample("ddim", basis), sample("ddim", "eps"), rtol=1e-9, atol=1e-9)
        assert np.abs(sample("pfdiff:k=2,l=1", basis) - sample("pfdiff:k=2,l=1", "eps")).max() > 1e-3


@pytest.mark.parametrize("basis", ["eps", "x0"])
@pytest.mark.parametrize(("k", "l"), VARIANTS)
def test_past_only_is_ddim_on_its_own_times(k, l, basis):
    past = pfdiff.compile(f"pfdiff:k={k},l={l},use=past", "linear:1000", 7, grid="quadratic", basis=basis)
    plain = pfdiff.compile("ddim", "linear:1000", 7, grid=[*past.times, -1], basis=basis)
    np.testing.assert_allclose(past.table, plain.table, rtol=1e-9, atol=1e-12)
    assert past.buffers == 1


@pytest.mark.parametrize("nfe", [4, 5])
def test_future_only_spends_two_evaluations_a_block(nfe):
    program = pfdiff.compile("pfdiff:k=2,l=1,use=future", "linear:1000", nfe, grid="uniform")
    grid = make_grid("uniform", SCHEDULE, 3 * (nfe // 2) + nfe % 2)
    anchors = range(nfe % 2, len(grid) - 1, 3)
    blocks = [grid[i + j] for i in anchors for j in (0, 1)]
    assert program.times.tolist() == [grid[0]] * (nfe % 2) + blocks


@pytest.mark.parametrize("base", ["dpm-solver-2", "dpm-solver-3", "dpm++2s", "dpm++3s"])
@pytest.mark.parametrize(("k", "l"), VARIANTS)
def test_higher_orders_count_their_evaluations(k, l, base):
    p = int(base.rstrip("s")[-1])
    for blocks in (2, 3, 5):
        program = pfdiff.compile(f"pfdiff:k={k},l={l},base={base}", "linear:1000", p * blocks, grid="logsnr")
        assert program.nfe == p * blocks
        assert np.all(np.diff(program.times) < 0)
    sample = program.evaluate(ORACLE.network(), NOISE)
    assert np.all(np.isfinite(sample))


def test_fractional_l():
    vp = parse_schedule("vp")
    program = pfdiff.compile("pfdiff:k=2,l=1.5", "vp", 3, grid="logsnr", end=0.01)
    lam = vp.lam(make_grid("logsnr", vp, 7, end=0.01))
    np.testing.assert_allclose(vp.lam(program.times[1:]), lam[[2, 5]] + 0.5 * (lam[3] - lam[2]), rtol=1e-9)
    with pytest.raises(pfdiff.InputError, match="fractional l needs a continuous schedule"):
        pfdiff.compile("pfdiff:k=2,l=1.5", "linear:1000", 3)


def test_trap_10_a_fixed_start_for_every_k():
    starts = {
        pfdiff.compile(f"pfdiff:k={k},l=1", "linear:1000", 4, grid="leading", t_start=750).times[0] for k in (1, 2, 3)
    }
    assert len(starts) == 3  # leading grids start where their interval ends: k changes the start
    starts = {
        pfdiff.compile(f"pfdiff:k={k},l=1", "linear:1000", 4, grid="uniform", t_start=750).times[0] for k in (1, 2, 3)
    }
    assert starts == {750}


@pytest.mark.parametrize(
    ("solver", "says"),
    [
        ("pfdiff:k=0,l=1", "takes k of 1, 2 or 3, got 0"),
        ("pfdiff:k=4,l=1", "takes k of 1, 2 or 3, got 4"),
        ("pfdiff:k=1,l=2", "takes l above 0 and at most k = 1, got 2"),
        ("pfdiff:k=2,l=0", "takes l above 0"),
        ("pfdiff:k=2,l=x", "takes a number for l, got 'x'"),
        ("pfdiff:k=1.5,l=1", "k must be a whole number, got '1.5'"),
        ("pfdiff:k=2,m=1", "unexpected 'm=1'; pfdiff takes k, l, base, use"),
        ("pfdiff:k=2,k=1", "k is given twice"),
        ("pfdiff:k=2,l=1,base=deis", "no base 'deis'; known: ddim, dpm-solver-2"),
        ("pfdiff:k=2,l=1,use=none", "no use='none'; known: both, past, future"),
        ("pfdiff:k=2,l=1,base=dpm++2s,use=past", "whole l and use=both only"),
        ("pfdiff:k=2,l=1,base=dpm-solver-3", "NFE 8 is no multiple of 3, use 6 or 9"),
    ],
)
def test_bad_options(solver, says):
    with pytest.raises(pfdiff.InputError, match=re.escape(says)):
        pfdiff.compile(solver, "linear:1000", 8)
