"""Samplers that draw noise: their tables, draws, seeds, names and refusals. Moments and diffusers have files beside."""

from __future__ import annotations

import json

import numpy as np
import pytest

import pfdiff
from pfdiff.engine.compiler.lower import rank_bound
from pfdiff.engine.compiler.solvers import parse_solver
from pfdiff.engine.compiler.solvers.ddim import Ddim
from pfdiff.engine.philox import fill_numpy

from ...oracle import Mixture
from ...refusals import check_refused

NOISE = np.random.default_rng(3).standard_normal((2, 3, 4))
XI = np.random.default_rng(4).standard_normal((32, 2, 3, 4))
START = {"flow:shift=3": 0.98}
# By state buffers.
SOLVERS = {
    1: "ddpm ddpm:variance=large ddim:eta=0.5 euler-a sa:predictor=1,corrector=0 lcm tcd:gamma=0.3 consistency "
    "analytic-ddpm:x0_var=0.5/0.4/0.3/0.2/0.1/0.05/0 analytic-ddim:x0_var=0.5/0.4/0.3/0.2/0.1/0.05/0",
    2: "dpm++:sde dpm++:2m-sde pfdiff:k=2,l=1,eta=0.5 "
    "pfdiff:k=3,l=2,base=analytic-ddim,x0_var=0.5/0.4/0.3/0.2/0.1/0.05/0 tada:order=1 "
    "sa:predictor=2,corrector=0 pfdiff:k=2,l=1,eta=1 pfdiff:k=3,l=1,eta=0.5",
    3: "dpm++:3m-sde dpm++:3m-sde-diffusers sa sa:predictor=2,corrector=2 sa:predictor=2,corrector=2,tau=0.4 "
    "tada:order=2 tada:order=2,scale=2",
    4: "sa:predictor=3,corrector=3,tau=0.5 tada tada:variables=3,order=2,scale=2 tada:variables=4,order=2",
}
BUFFERS = {solver: buffers for buffers, solvers in SOLVERS.items() for solver in solvers.split()}


@pytest.mark.parametrize("schedule", ["linear:1000", "vp", "edm", "flow:shift=3"])
@pytest.mark.parametrize("solver", BUFFERS)
def test_buffers_are_the_rank_bound_and_updates_are_the_table(solver, schedule):
    """A draw needs no buffer. Run on unit vectors, the in-place updates reproduce every row."""
    nfe = 7
    program = pfdiff.compile(solver, schedule, nfe, grid="karras", basis="eps", t_start=START.get(schedule))
    noises = program.noises
    assert program.table.shape == (nfe + 1, 1 + noises + nfe)
    assert program.buffers == rank_bound(program.table, program.draws) == BUFFERS[solver]
    assert np.count_nonzero(program.V.any(axis=1)) == noises == len(program.draws) > 0
    unit, asked = np.eye(1 + noises + nfe), []

    def network(y, t):
        asked.append(y)
        return unit[noises + len(asked)]

    sample = program.evaluate(network, unit[0], steps_noise=unit[1 : 1 + noises])
    scale = np.abs(program.table).max(1, keepdims=True)
    np.testing.assert_allclose(np.array([*asked, sample]) / scale, program.table / scale, atol=3e-11)


@pytest.mark.parametrize("solver", BUFFERS)
def test_a_draw_is_used_after_it_is_made(solver):
    """Row n knows the draws made after the evaluations before n, and no output of its own or later."""
    program = pfdiff.compile(solver, "vp", 7, grid="karras")
    for n, row in enumerate(program.table[:-1]):
        late = [k for k, after in enumerate(program.draws) if after >= n]
        assert not row[1 : 1 + program.noises][late].any()
        assert not row[1 + program.noises + n :].any()


@pytest.mark.parametrize(("schedule", "prediction"), [("linear:1000", "eps"), ("flow", "flow")])
def test_pfdiff_with_noise_stores_x0(schedule, prediction):
    """A past x0 moves the springboard and keeps the new noise of the anchor; a past eps or v knows nothing of it."""

    def basis(solver, given=None):
        return pfdiff.compile(solver, schedule, 5, basis=given, prediction=prediction).basis

    usual = basis("pfdiff:k=2,l=1")
    assert usual != "x0"
    for solver in ("pfdiff:k=2,l=1,eta=0.3", "pfdiff:k=2,l=1,base=analytic-ddim,x0_var=0.5/0.4/0.3/0.2/0.1"):
        assert basis(solver) == "x0"
        assert basis(solver, usual) == usual


# Names and relations.
def test_relations():
    def table(solver):
        return pfdiff.compile(solver, "linear:1000", 5, grid="trailing", basis="eps").table

    np.testing.assert_allclose(table("ddpm"), table("ddim:eta=1"), atol=1e-13)
    np.testing.assert_allclose(table("sa:predictor=1,corrector=0"), table("ddpm"), atol=1e-12)
    assert str(parse_solver("euler-a")) == "ddim:eta=1"
    assert str(parse_solver("euler-a:eta=0")) == str(parse_solver("ddim:eta=0")) == "ddim"
    for text in (*BUFFERS, "ddim:eta=0.1234567890123", "sa:tau=0.3,low=200,high=800", "lcm:scaling=4", "analytic-ddim"):
        assert str(parse_solver(str(parse_solver(text)))) == str(parse_solver(text))
    assert parse_solver("ddim:eta=0.1234567890123") == Ddim(0.1234567890123)


def test_relations_of_the_newer_families():
    def table(solver, schedule="linear:1000", basis="eps"):
        return pfdiff.compile(solver, schedule, 5, grid="trailing", basis=basis, t_start=START.get(schedule)).table

    none = "/".join(["0"] * 5)
    np.testing.assert_allclose(table(f"analytic-ddpm:x0_var={none}"), table("ddpm"), atol=1e-13)
    np.testing.assert_allclose(table(f"analytic-ddim:x0_var={none}"), table("ddim"), atol=1e-13)
    pfdiff_table = table("pfdiff:k=2,l=1")
    np.testing.assert_allclose(table(f"pfdiff:k=2,l=1,base=analytic-ddim,x0_var={none}"), pfdiff_table, atol=1e-13)
    np.testing.assert_array_equal(table("pfdiff:k=2,l=1,eta=0"), pfdiff_table)
    # One variable of order 1 is Euler's method in the time of a flow.
    euler = table("euler", "flow:shift=3", "x0")
    np.testing.assert_allclose(table("tada:variables=1,order=1", "flow:shift=3", "x0"), euler, atol=1e-12)


def test_no_noise_without_eta_tau_or_gamma():
    for solver in ("ddim:eta=0", "sa:tau=0", "sa:tau=1,low=2000", "tcd:gamma=0"):
        assert pfdiff.compile(solver, "linear:1000", 5, grid="trailing", end="first").noises == 0
    ddim = pfdiff.compile("ddim", "linear:1000", 5, grid="trailing", end="first", basis="eps")
    tcd = pfdiff.compile("tcd:gamma=0", "linear:1000", 5, grid="trailing", end="first", basis="eps")
    np.testing.assert_allclose(tcd.table, ddim.table, atol=1e-14)


# Refusals.
@pytest.mark.parametrize(
    ("solver", "says"),
    [
        ("ddim:eta=1.5", "eta between 0 and 1, got 1.5"),
        ("ddim:eta=much", "eta must be a number, got 'much'"),
        ("tcd:gamma=-1", "gamma between 0 and 1, got -1"),
        ("lcm:scaling=0", "scaling above 0, got 0"),
        ("ddpm:variance=learned", "no variance 'learned'; known: small, large"),
        ("sa:predictor=5", "predictors 1 to 4 and correctors 0 to 4, got 5, 2"),
        ("sa:tau=-1", "a tau of at least 0"),
        ("analytic-ddim", "at each of 5 steps: pfdiff build estimates it, and x0_var=0.4/0.2/... gives it"),
        ("analytic-ddpm:x0_var=0.3/0.2", "analytic-ddpm: 2 variances x0_var for 5 steps; give 5"),
        ("analytic-ddpm:x0_var=0.3/-1", "variances of at least 0"),
        ("analytic-ddpm:x0_var=0.3/", "each of x0_var must be a number, got ''"),
        ("analytic-ddpm:x0_var=" + "0.1/" * 400 + "0", "at most 400 variances, got 401"),
        ("pfdiff:base=analytic-ddim", "pfdiff:k=2,l=1,base=analytic-ddim needs the network's variance"),
        ("pfdiff:x0_var=0.3", "pfdiff takes x0_var over analytic-ddim only"),
        ("pfdiff:base=analytic-ddim,use=past", "over analytic-ddim pfdiff takes use=both only"),
        ("pfdiff:eta=2", "pfdiff takes an eta between 0 and 1, got 2"),
        ("pfdiff:base=heun,eta=1", "an eta over ddim and analytic-ddim with use=both only"),
        ("pfdiff:use=past,eta=1", "an eta over ddim and analytic-ddim with use=both only"),
        ("tada:variables=5", "tada takes 1 to 4 variables, got 5"),
        ("tada:order=4", "tada takes order 1, 2 or 3, got 4"),
        ("tada:scale=0", "tada takes a scale above 0, got 0"),
    ],
)
def test_bad_solvers(solver, says):
    check_refused(says, pfdiff.compile, solver, "linear:1000", 5)


EDM = {"schedule": "edm", "prediction": "consistency", "grid": [9.0, 2.0, 0.5, 0.002, 0.0], "nfe": 4}


@pytest.mark.parametrize(
    ("solver", "options", "says"),
    [
        ("dpm++:sde", {"nfe": 6}, "NFE 6 is even, use 5 or 7"),
        ("tada", {"schedule": "linear:1000?terminal=0"}, "tada cannot start where alpha is 0; start below it"),
        ("consistency", EDM, "gives x_t itself at time 0.002"),
    ],
)
def test_what_a_solver_cannot_do(solver, options, says):
    given = {"schedule": "linear:1000", "nfe": 5, **options}
    check_refused(says, lambda: pfdiff.compile(solver, **given))


# The reference execution and the JSON form.
def test_json_has_the_noise_and_only_where_there_is_some():
    program = pfdiff.compile("sa", "linear:1000", 6)
    again = pfdiff.Program.from_json(program.to_json())
    assert (again.digest, again.noises, again.draws) == (program.digest, 5, (0, 1, 2, 3, 4))
    np.testing.assert_array_equal(again.V, program.V)
    ddim = pfdiff.compile("ddim", "linear:1000", 6)
    assert "V" not in json.loads(ddim.to_json())
    assert ddim.noises == 0
    assert not ddim.V.any()


@pytest.mark.parametrize("damage", [lambda d: d.pop("V"), lambda d: d.update(V=[[0.0]]), lambda d: d.update(V=3.0)])
def test_damaged_json(damage):
    data = json.loads(pfdiff.compile("ddpm", "linear:1000", 4).to_json())
    damage(data)
    with pytest.raises(pfdiff.InputError, match="not a program"):
        pfdiff.Program.from_json(json.dumps(data))


def test_seeds_name_the_noise():
    """xi_n is draw n + 1 of the seed; a sample is the same alone and among others, in NumPy and in torch."""
    oracle = Mixture.of("vp", 3)
    program = pfdiff.compile("dpm++:2m-sde", "vp", 5)
    noise = np.random.default_rng(1).standard_normal((3, 2, 5))
    seeds, xi = [7, 2**64 - 1, 0], np.empty((program.noises, 3, 10), np.float32)
    for k, n in enumerate(program.draws):
        fill_numpy(xi[k], np.array(seeds, np.uint64), n + 1)
    sample = program.evaluate(oracle.network(), noise, seeds=seeds)
    given = program.evaluate(oracle.network(), noise, steps_noise=xi.reshape(-1, 3, 2, 5))
    np.testing.assert_array_equal(sample, given)
    np.testing.assert_array_equal(program.evaluate(oracle.network(), noise[1:2], seeds=seeds[1:2]), sample[1:2])
    torch = pytest.importorskip("torch")
    tensor = program.evaluate(
        lambda x, t: torch.from_numpy(oracle.network()(x.numpy(), t)), torch.from_numpy(noise), seeds=seeds
    )
    np.testing.assert_allclose(tensor.numpy(), sample, rtol=1e-12)


@pytest.mark.parametrize(
    ("solver", "given", "says"),
    [
        ("ddpm", {}, "ddpm draws 3 noises on the way; give seeds= or steps_noise="),
        ("ddpm", {"seeds": [1]}, "1 seeds for noise of shape (2, 3, 4); give one seed for each"),
        ("ddpm", {"seeds": [1, -1]}, "seed -1"),
        ("ddpm", {"steps_noise": XI[:2]}, "steps_noise and shape (2, 2, 3, 4); ddpm takes steps_noise (3, 2, 3, 4)"),
        ("ddpm", {"steps_noise": XI[:3], "seeds": [1, 2]}, "steps_noise and also seeds"),
        ("ddim", {"steps_noise": XI[:3]}, "ddim takes steps_noise (0, 2, 3, 4)"),
    ],
)
def test_noise_that_is_not_determined_is_refused(solver, given, says):
    program = pfdiff.compile(solver, "linear:1000", 4)
    with pytest.raises(pfdiff.InputError) as caught:
        program.evaluate(lambda x, t: x, NOISE, **given)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
