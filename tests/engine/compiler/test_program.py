"""Compilation: every prediction, basis and schedule against exact solutions; bounds, JSON, traps of the end points."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

import pfdiff
from pfdiff.engine.compiler.lower import rank_bound
from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.engine.compiler.solvers import parse_solver

from ...oracle import Mixture

NOISE = np.random.default_rng(1).standard_normal((3, 4))
# Solver -> state buffers. Multistep methods of order r keep the state and r - 1 answers or what becomes of them; UniPC
# also the state that its corrector starts from.
SOLVERS = {
    "ddim": 1,
    "dpm-solver:order=1": 1,
    "dpm-solver:order=2": 2,
    "dpm-solver:order=3": 2,
    "dpm-solver:2m": 2,
    "dpm++:1s": 1,
    "dpm++:2s": 2,
    "dpm++:3s": 2,
    "dpm++:2m": 2,
    "dpm++:3m": 3,
    "deis:order=2": 2,
    "deis:order=3": 3,
    "deis:order=4,variant=rho": 4,
    "ab:order=3": 3,
    "ipndm:order=4": 4,
    "unipc:order=1": 2,
    "unipc:order=2,variant=bh1,form=eps": 3,
    "unipc:order=3": 4,
    "heun": 2,
    "edm": 2,
    **{f"pfdiff:k={k},l={l}": 2 for k in (1, 2, 3) for l in range(1, k + 1)},
    "pfdiff:k=2,l=1,use=past": 1,
    "pfdiff:k=2,l=1,use=future": 2,
    **{f"pfdiff:k=2,l=1,base={base}": 2 for base in ("dpm-solver-2", "dpm-solver-3", "dpm++2s", "dpm++3s", "heun")},
}
START = {"flow:shift=3": 0.98}


def fitting(solver: str, nfe: int) -> int:
    """EDM's sampler takes an odd number of evaluations."""
    return nfe - (solver == "edm")


def bases(solver: str, schedule: str) -> tuple[str, ...]:
    """Averages of answers of several times have no meaning for a v that turns."""
    mixes = solver.split(":")[0] in ("deis", "ab", "ipndm", "heun", "edm") or solver.endswith("heun")
    return ("eps", "x0") if mixes and not schedule.startswith("flow") else ("eps", "x0", "v")


@pytest.mark.parametrize("schedule", ["linear:1000", "vp", "edm", "flow:shift=3"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_predictions_and_bases_agree(solver, schedule):
    """Every prediction gives the same samples; every basis too, where the solver has a form of its own."""
    oracle = Mixture.of(schedule, 3)
    samples = {}
    for prediction in ("eps", "x0", "v", "flow", "edm"):
        if prediction == "edm" and schedule != "edm":
            continue
        for basis in bases(solver, schedule):
            nfe = fitting(solver, 6)
            program = pfdiff.compile(
                solver, schedule, nfe, grid="karras", basis=basis, prediction=prediction, t_start=START.get(schedule)
            )
            samples[prediction, basis] = program.evaluate(oracle.network(prediction), NOISE)
    free = parse_solver(solver).parameterisation is None and solver != "ddim"
    for (_, basis), sample in samples.items():
        expected = samples["eps", basis if free else "eps"]
        np.testing.assert_allclose(sample, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("schedule", ["linear:1000", "vp", "edm", "flow:shift=3"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_buffers_are_the_rank_bound(solver, schedule):
    """None of the solvers here needs more buffers than the rank of its table says."""
    for nfe in (6, 12):
        nfe = fitting(solver, nfe)
        program = pfdiff.compile(solver, schedule, nfe, grid="karras", t_start=START.get(schedule))
        assert program.buffers == rank_bound(program.table)
        # Short programs end before the methods of order 3 and 4 hold all that they may.
        assert program.buffers == SOLVERS[solver] or (nfe == 6 and program.buffers == SOLVERS[solver] - 1)


@pytest.mark.parametrize("solver", SOLVERS)
def test_lowered_program_is_the_table(solver):
    """Run on unit vectors instead of pictures, the in-place updates reproduce every row."""
    nfe = fitting(solver, 12)
    program = pfdiff.compile(solver, "cosine:300", nfe, grid="logsnr", t_start=298)
    unit = np.eye(nfe + 1)
    asked = []

    def network(y, t):
        asked.append(y)
        return unit[len(asked)]

    rows = [*asked, program.evaluate(network, unit[0])]
    rows = [*asked, rows[-1]]
    scale = np.abs(program.table).max(1, keepdims=True)
    np.testing.assert_allclose(rows / scale, program.table / scale, atol=1e-12)


@pytest.mark.parametrize("nfe", [1, 2, 3, 17])
def test_ddim_against_its_formula(nfe):
    oracle = Mixture.of("linear:1000", 3)
    program = pfdiff.compile("ddim", "linear:1000", nfe, grid="trailing")
    alphabar = np.append(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), 1.0)
    x, times = NOISE, [*program.times.astype(int), -1]
    for s, t in pairwise(times):
        eps = oracle.network()(x, s)
        x_0 = (x - np.sqrt(1 - alphabar[s]) * eps) / np.sqrt(alphabar[s])
        x = np.sqrt(alphabar[t]) * x_0 + np.sqrt(1 - alphabar[t]) * eps
    np.testing.assert_allclose(program.evaluate(oracle.network(), NOISE), x, rtol=1e-9, atol=1e-9)


def test_edm_columns():
    program = pfdiff.compile("ddim", "edm", 4, grid="karras", prediction="edm", sigma_data=0.5)
    np.testing.assert_allclose(program.network_times, np.log(program.times) / 4)
    np.testing.assert_allclose(program.c_in, 1 / np.sqrt(program.times**2 + 0.25))
    assert program.table[0, 0] == 80


def test_trap_8_end_points():
    """alpha = 1 (DDIM, ADM), alphabar_0 (Stable Diffusion), t = 1e-3 (ScoreSDE)."""
    alphabar_0 = 1 - 1e-4
    clean = pfdiff.compile("ddim", "linear:1000", 4)
    first = pfdiff.compile("ddim", "linear:1000", 4, end="first")
    # A network that knows x_0 = 0 and eps = x / sigma: what is left at the end is the end's own sigma.
    sigma = parse_schedule("linear:1000").sigma
    start = float(sigma(999))
    assert clean.evaluate(lambda x, t: x / float(sigma(t)), start) == pytest.approx(0, abs=1e-12)
    left = first.evaluate(lambda x, t: x / float(sigma(t)), start)
    assert left == pytest.approx(np.sqrt(1 - alphabar_0), rel=1e-6)
    score_sde = pfdiff.compile("ddim", "vp", 4, end=1e-3)
    vp = parse_schedule("vp")
    left = score_sde.evaluate(lambda x, t: x / float(vp.sigma(t)), float(vp.sigma(1.0)))
    assert left == pytest.approx(float(vp.sigma(1e-3)), rel=1e-6)


def test_trap_8_x0_steps_do_not_start_without_noise():
    from pfdiff.engine.compiler.basis import transfer

    with pytest.raises(pfdiff.InputError, match="cannot start at time -1, where sigma is 0"):
        transfer(-1, 5, "x0", parse_schedule("linear:1000"))
    with pytest.raises(pfdiff.InputError, match="basis eps cannot start at time 1, where alpha is 0"):
        pfdiff.compile("ddim", "flow", 4, grid="uniform", basis="eps", prediction="flow")


def test_trap_9_clip_tames_the_last_index_of_a_cosine_schedule():
    # alphabar_T is 1e-10 here: an eps that is off by 1e-3 at the first evaluation means an x0 that is off by 60.
    oracle = Mixture.of("cosine:300").network()

    def damage(**options):
        program = pfdiff.compile("ddim", "cosine:300", 8, **options)
        off = lambda x, t: oracle(x, t) + (1e-3 if t >= 298 else 0)  # noqa: E731  # one formula
        return np.abs(program.evaluate(off, NOISE) - program.evaluate(oracle, NOISE)).max()

    assert damage() > 1
    assert damage(clip=2.5) < 0.5 * damage()
    assert damage(t_start=298) < 0.05


@pytest.mark.parametrize("basis", ["eps", "x0", "v"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_clip_is_a_clamp_of_x0(prediction, basis):
    """Trap 13: what is clipped is the network's x0, whatever it predicts and whatever is stored."""
    oracle = Mixture.of("linear:1000", 3)
    program = pfdiff.compile("ddim", "linear:1000", 5, clip=0.6, prediction=prediction, basis=basis)
    alphabar = np.append(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), 1.0)
    x, times = NOISE, [*program.times.astype(int), -1]
    for s, t in pairwise(times):
        a_s, s_s = np.sqrt(alphabar[s]), np.sqrt(1 - alphabar[s])
        x_0 = np.clip((x - s_s * oracle.network()(x, s)) / a_s, -0.6, 0.6)
        x = np.sqrt(alphabar[t]) * x_0 + np.sqrt(1 - alphabar[t]) * (x - a_s * x_0) / s_s
    np.testing.assert_allclose(program.evaluate(oracle.network(prediction), NOISE), x, rtol=1e-8, atol=1e-8)


def test_float32_stays_within_1e_4():
    oracle = Mixture.of("linear:1000", 3)
    for solver in ("ddim", "pfdiff:k=2,l=1", "dpm++:2m"):
        program = pfdiff.compile(solver, "linear:1000", 10, grid="logsnr", prediction="v")
        network = oracle.network("v")
        single = program.evaluate(lambda x, t: network(x.astype(np.float64), t).astype(np.float32), np.float32(NOISE))  # noqa: B023  # used at once
        assert single.dtype == np.float32
        np.testing.assert_allclose(single, program.evaluate(network, NOISE), rtol=1e-4, atol=1e-4)


def test_torch_and_numpy_agree():
    torch = pytest.importorskip("torch")
    program = pfdiff.compile("pfdiff:k=2,l=1", "linear:1000", 6, clip=1.0)
    oracle = Mixture.of("linear:1000", 3).network()
    tensor = program.evaluate(lambda x, t: torch.from_numpy(oracle(x.numpy(), t)), torch.from_numpy(NOISE))
    np.testing.assert_allclose(tensor.numpy(), program.evaluate(oracle, NOISE), rtol=1e-12)


def test_json_round_trip():
    program = pfdiff.compile(
        "pfdiff:k=2,l=1", "vp", 5, grid=[1.0, *np.linspace(0.9, 0.1, 12), 0.0], clip=1.0, end="clean"
    )
    again = pfdiff.Program.from_json(program.to_json())
    assert again.to_json() == program.to_json()
    assert again.digest == program.digest
    assert again.grid == program.grid
    for name in ("times", "table", "W", "w", "init"):
        np.testing.assert_array_equal(getattr(again, name), getattr(program, name))


def test_arrays_are_read_only():
    program = pfdiff.compile("ddim", "vp", 3)
    with pytest.raises(ValueError, match="read-only"):
        program.table[0, 0] = 2


def test_digest_names_the_sampler():
    one = pfdiff.compile("ddim", "linear:1000", 5)
    assert one.digest == pfdiff.compile("ddim", "linear:1000", 5).digest
    assert one.digest != pfdiff.compile("ddim", "linear:1000", 5, grid="trailing").digest


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("table"),
        lambda d: d.update(table=[[1.0]]),
        lambda d: d.update(W="many"),
        lambda d: d.update(nfe="x"),
        lambda d: d.update(nfe=3),
        lambda d: d.update(init=[None]),
        lambda d: d.update(w=[[float("inf")]] * 4),
    ],
)
def test_damaged_json(damage):
    data = json.loads(pfdiff.compile("ddim", "linear:1000", 4).to_json())
    damage(data)
    with pytest.raises(pfdiff.InputError, match="not a program"):
        pfdiff.Program.from_json(json.dumps(data))
    with pytest.raises(pfdiff.InputError, match="not a program"):
        pfdiff.Program.from_json("[1, 2")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"nfe": 0}, "NFE must be a whole number of at least 1, got 0"),
        ({"nfe": 4097}, "NFE 4097, expected at most 4096"),
        ({"nfe": -3}, "NFE must be a whole number of at least 1, got -3"),
        ({"nfe": 2.5}, "NFE must be a whole number of at least 1, got 2.5"),
        ({"nfe": True}, "NFE must be a whole number of at least 1, got True"),
        ({"solver": "dim"}, "unknown solver 'dim'; known: ddim, dpm-solver"),
        ({"solver": "dpm++:4m"}, "dpm++ has no variant '4m'; known: 1s, 2s, 3s, 2m"),
        ({"solver": "dpm-solver:order=4"}, "has order 1, 2 or 3, got 4"),
        ({"solver": "dpm-solver:order=3"}, "NFE 5 is no multiple of 3, use 3 or 6"),
        ({"solver": "ddim:order=1"}, "unexpected 'order=1'; ddim takes eta"),
        ({"solver": "heun:order=1"}, "unexpected 'order=1'; heun takes no options"),
        ({"prediction": "score"}, "unknown prediction 'score'; known: eps, x0, v, flow, edm"),
        ({"basis": "lambda"}, "unknown basis 'lambda'; known: eps, x0, v"),
        ({"clip": 0}, "clip must be above 0, got 0"),
        ({"sigma_data": -1}, "sigma_data must be above 0"),
        ({"schedule": "cosine:4"}, "needs 5 times but the schedule has 4"),
        ({"schedule": "flow", "prediction": "eps"}, "eps does not determine flow at time 1"),
        ({"schedule": "flow", "solver": "dpm++:2s", "nfe": 4, "prediction": "flow"}, "cannot start at time 1"),
    ],
)
def test_bad_arguments(options, says):
    arguments = {"solver": "ddim", "schedule": "linear:1000", "nfe": 5, **options}
    with pytest.raises(pfdiff.InputError) as caught:
        pfdiff.compile(**arguments)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("schedule", "prediction", "kind"),
    [("vp", "eps", float), ("flow", "flow", float), ("linear:1000", "eps", int), ("linear:1000", "edm", float)],
)
def test_the_reference_passes_times_of_one_type(schedule: str, prediction: str, kind: type):
    """vp starts at time 1, a whole number, and a network that makes an int64 tensor of it truncates."""
    program = pfdiff.compile(
        "ddim", schedule, 2, "uniform", prediction=prediction, t_start=0.98 if schedule == "flow" else None
    )
    asked = []
    program.evaluate(lambda x, t: asked.append(t) or x, NOISE)
    assert [type(t) for t in asked] == 2 * [kind]
    assert asked == program.network_times.tolist()


@pytest.mark.parametrize("schedule", ["alphas:moved.npy", f"alphas:sha256={32 * '0'}"])
def test_the_reference_needs_no_numbers_of_an_own_schedule(schedule: str):
    made = pfdiff.compile("ddim", "linear:1000", 4)
    read = pfdiff.Program.from_json(json.dumps({**json.loads(made.to_json()), "schedule": schedule}))
    asked = []
    np.testing.assert_array_equal(
        read.evaluate(lambda x, t: asked.append(t) or x, NOISE), made.evaluate(lambda x, t: x, NOISE)
    )
    assert [type(t) for t in asked] == 4 * [int]
