"""Every solver against diffusers' schedulers on the same times, against its paper, and at its edges."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import pfdiff
from pfdiff.engine.compiler.lower import rank_bound
from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.engine.compiler.solvers import SOLVERS, parse_solver
from pfdiff.engine.compiler.solvers.exponential import varphi
from pfdiff.engine.compiler.solvers.pfdiff import BASES
from pfdiff.engine.compiler.solvers.unipc import update

from ...oracle import Mixture
from ...refusals import check_refused

LINEAR = parse_schedule("linear:1000")
NOISE = np.random.default_rng(3).standard_normal((2, 3, 4))
# Uneven on purpose; the step to 3 ends above the clean point.
TIMES = [980, 870, 800, 655, 500, 410, 250, 130, 40]
FLOW_TIMES = [1.0, 0.93, 0.8, 0.62, 0.4, 0.33, 0.1]

# Against diffusers. Its tables are replaced by ours in float64, so that 1e-10 can be asked for; 2e-6 where it casts its
# state to float32 in every step.

DOUBLE, SINGLE = 1e-10, 2e-6
DPM, UNIPC, DEIS = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"
FULL_ORDER = {"lower_order_final": False}
EPS_FORM = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", **FULL_ORDER}
MULTISTEP = [  # ours, theirs, options, last time, tolerance
    ("ddim", DPM, {"solver_order": 1}, -1, SINGLE),
    ("dpm++:2m", DPM, {"solver_order": 2}, -1, SINGLE),
    ("dpm++:3m", DPM, {"solver_order": 3}, -1, SINGLE),
    ("dpm++:2m", DPM, {"solver_order": 2, "final_sigmas_type": "sigma_min", **FULL_ORDER}, 3, SINGLE),
    ("dpm++:3m", DPM, {"solver_order": 3, "final_sigmas_type": "sigma_min", **FULL_ORDER}, 3, SINGLE),
    ("dpm-solver:order=1", DPM, {"solver_order": 1, **EPS_FORM}, 3, SINGLE),
    ("dpm-solver:2m", DPM, {"solver_order": 2, **EPS_FORM}, 3, SINGLE),
    ("dpm-solver:3m", DPM, {"solver_order": 3, **EPS_FORM}, 3, SINGLE),
    ("deis:order=1,variant=lambda", DEIS, {"solver_order": 1, **FULL_ORDER}, 3, DOUBLE),
    ("deis:order=2,variant=lambda", DEIS, {"solver_order": 2, **FULL_ORDER}, 3, DOUBLE),
    ("deis:order=3,variant=lambda", DEIS, {"solver_order": 3, **FULL_ORDER}, 3, DOUBLE),
]
for p in (1, 2, 3):
    # To the clean point theirs gives NaN for bh1 and for the eps form; ours is compared above it there.
    MULTISTEP.append((f"unipc:order={p}", UNIPC, {"solver_order": p}, -1, DOUBLE))
    for variant in ("bh1", "bh2"):
        for form in ("x0", "eps"):
            options = {"solver_order": p, "solver_type": variant, "predict_x0": form == "x0", **FULL_ORDER}
            MULTISTEP.append((f"unipc:order={p},variant={variant},form={form}", UNIPC, options, 3, DOUBLE))


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


@pytest.fixture(autouse=True)
def theirs_warn():
    """diffusers hands torch tensors to NumPy functions, and announces that algorithm_type dpmsolver will go."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array", DeprecationWarning)
        warnings.filterwarnings("ignore", ".*algorithm_type", FutureWarning)
        yield


def ratios(times):
    return [float(LINEAR.sigma(t) / LINEAR.alpha(t)) for t in times]


def drive(scheduler, network, x, torch):
    """Samples with a diffusers scheduler whose times are set; network and states in float64."""
    scheduler.set_begin_index(0)
    x = torch.from_numpy(x)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.from_numpy(network(x.numpy(), t.item())), t, x).prev_sample.double()
    return x.numpy()


@pytest.mark.parametrize(("solver", "name", "options", "last", "tolerance"), MULTISTEP)
def test_multistep_against_diffusers(solver, name, options, last, tolerance, torch, diffusers):
    network = Mixture.of("linear:1000", 3).network()
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(len(TIMES))
    scheduler.timesteps = torch.tensor(TIMES)
    scheduler.sigmas = torch.tensor(ratios([*TIMES, last]), dtype=torch.float64)
    program = pfdiff.compile(solver, "linear:1000", len(TIMES), grid=[*TIMES, last])
    sample = program.evaluate(network, NOISE)
    np.testing.assert_allclose(sample, drive(scheduler, network, NOISE, torch), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("solver", "name", "options"),
    [
        ("dpm++:2m", DPM, {"solver_order": 2}),
        ("dpm++:3m", DPM, {"solver_order": 3}),
        ("unipc:order=2", UNIPC, {"solver_order": 2}),
        ("unipc:order=3", UNIPC, {"solver_order": 3}),
    ],
)
def test_multistep_with_the_tables_of_diffusers(solver, name, options, torch, diffusers):
    """As it is: its own times and its float32 table."""
    network = Mixture.of("linear:1000", 3).network()
    scheduler = getattr(diffusers, name)(timestep_spacing="trailing", **options)
    scheduler.set_timesteps(10)
    program = pfdiff.compile(solver, "linear:1000", 10, grid="trailing")
    assert program.times.tolist() == scheduler.timesteps.tolist()
    sample = program.evaluate(network, NOISE)
    np.testing.assert_allclose(sample, drive(scheduler, network, NOISE, torch), rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize(("solver", "name"), [("euler", "EulerDiscreteScheduler"), ("edm", "HeunDiscreteScheduler")])
def test_sigma_steps_against_diffusers(solver, name, torch, diffusers):
    """States there are x / alpha, the times of Heun's scheduler are doubled from the second on."""
    network = Mixture.of("linear:1000", 3).network()
    repeats = 2 if solver == "edm" else 1
    times, sigmas = np.array(TIMES, np.float64), np.array(ratios([*TIMES, -1]))
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(len(TIMES))
    scheduler.timesteps = torch.from_numpy(np.append(times[:1], times[1:].repeat(repeats)))
    scheduler.sigmas = torch.from_numpy(np.concatenate([sigmas[:1], sigmas[1:-1].repeat(repeats), sigmas[-1:]]))
    scheduler.is_scale_input_called = True
    scaled = drive(scheduler, lambda x, t: network(x * LINEAR.alpha(t), t), NOISE / LINEAR.alpha(TIMES[0]), torch)
    program = pfdiff.compile(solver, "linear:1000", len(scheduler.timesteps), grid=[*TIMES, -1])
    tolerance = DOUBLE if solver == "edm" else SINGLE
    np.testing.assert_allclose(program.evaluate(network, NOISE), scaled, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("solver", "name"), [("euler", "FlowMatchEulerDiscreteScheduler"), ("edm", "FlowMatchHeunDiscreteScheduler")]
)
def test_flow_matching_against_diffusers(solver, name, torch, diffusers):
    network = Mixture.of("flow", 3).network("flow")
    repeats = 2 if solver == "edm" else 1
    times = np.array([*FLOW_TIMES, 0.0])
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(len(FLOW_TIMES))
    scheduler.sigmas = torch.from_numpy(np.concatenate([times[:1], times[1:-1].repeat(repeats), times[-1:]]))
    scheduler.timesteps = scheduler.sigmas[:-1]
    program = pfdiff.compile(solver, "flow", len(scheduler.timesteps), grid=times.tolist(), prediction="flow")
    sample = program.evaluate(network, NOISE)
    np.testing.assert_allclose(sample, drive(scheduler, network, NOISE, torch), rtol=SINGLE, atol=SINGLE)


def test_ipndm_against_diffusers(torch, diffusers):
    """Its scheduler takes the sigmas as betas, and a network that predicts v."""
    network = Mixture.of("linear:1000", 3).network("v")
    scheduler = diffusers.IPNDMScheduler(trained_betas=LINEAR.sigma([*TIMES, -1]).tolist())
    scheduler.set_timesteps(len(TIMES))
    scheduler.timesteps = torch.tensor(TIMES)
    scheduler.betas = torch.from_numpy(LINEAR.sigma([*TIMES, -1]))
    scheduler.alphas = torch.from_numpy(LINEAR.alpha([*TIMES, -1]))
    program = pfdiff.compile("ipndm:order=4", "linear:1000", len(TIMES), grid=[*TIMES, -1], prediction="v")
    sample = program.evaluate(network, NOISE)
    np.testing.assert_allclose(sample, drive(scheduler, network, NOISE, torch), rtol=DOUBLE, atol=DOUBLE)


@pytest.mark.parametrize("family", ["dpm-solver", "dpm++"])
def test_single_step_against_diffusers(family, torch, diffusers):
    network = Mixture.of("linear:1000", 3).network()
    blocks = [980, 655, 250, 40]
    solver = "dpm++:2s" if family == "dpm++" else "dpm-solver:order=2"
    program = pfdiff.compile(solver, "linear:1000", 6, grid=blocks)
    kind = {"algorithm_type": "dpmsolver++" if family == "dpm++" else "dpmsolver"}
    scheduler = diffusers.DPMSolverSinglestepScheduler(solver_order=2, final_sigmas_type="sigma_min", **kind)
    scheduler.set_timesteps(6)
    scheduler.timesteps = torch.tensor(program.times.tolist())
    scheduler.sigmas = torch.tensor(ratios([*program.times, 40]), dtype=torch.float64)
    scheduler.order_list = [1, 2] * 3
    sample = program.evaluate(network, NOISE)
    np.testing.assert_allclose(sample, drive(scheduler, network, NOISE, torch), rtol=DOUBLE, atol=DOUBLE)


# Against the paper.


def test_edm_is_algorithm_1_without_churn():
    network = Mixture.of("edm", 3).network("x0")
    program = pfdiff.compile("edm", "edm", 9, grid="karras", prediction="x0")
    t = np.append((80 ** (1 / 7) + np.arange(5) / 4 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, 0)
    x = t[0] * NOISE
    for i in range(5):
        d = (x - network(x, t[i])) / t[i]
        y = x + (t[i + 1] - t[i]) * d
        if t[i + 1] > 0:
            y = x + (t[i + 1] - t[i]) * (d + (y - network(y, t[i + 1])) / t[i + 1]) / 2
        x = y
    np.testing.assert_allclose(program.evaluate(network, NOISE), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", ["eps", "x0"])
def test_bh_matters_only_where_one_half_stands(form):
    """With three answers both are the same polynomial; with two, theirs is the authors' 1/2."""
    process, times, d = parse_schedule("vp"), [0.4, 0.5, 0.65], [np.array(v) for v in (1.0, -2.0, 0.5)]

    def apart(count):
        one, two = (update(d[:count], np.array(0.3), times[:count], 0.35, v, form, process) for v in ("bh1", "bh2"))
        return float(abs(one - two))

    assert apart(3) < 1e-14
    assert apart(2) > 1e-3


@pytest.mark.parametrize("h", [1e-9, 1e-3, -0.5, 4.0, -12.0, 20.0])
def test_varphi(h):
    series = [sum(h**n / np.prod(np.arange(1, n + k + 1.0)) for n in range(120)) for k in (1, 2, 3)]
    if h > -4:  # below, the alternating series is the inexact one
        np.testing.assert_allclose([varphi(k, h) for k in (1, 2, 3)], series, rtol=1e-13)
    assert varphi(1, h) == pytest.approx(np.expm1(h) / h, rel=1e-13)


# Names and edges.


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("euler", "ddim"),
        ("dpm-solver", "dpm-solver:order=2"),
        ("dpm-solver:3m", "dpm-solver:3m"),
        ("dpm++:3m", "dpm++:3m"),
        ("deis", "deis:order=3"),
        ("deis:order=4,variant=rho", "deis:order=4,variant=rho"),
        ("ab:order=2", "deis:order=2,variant=lambda"),
        ("ab:order=2,variable=rho", "deis:order=2,variant=rho"),
        ("ipndm", "ipndm:order=4"),
        ("ipndm:order=3,variant=variable", "deis:order=3,variant=rho"),
        ("unipc", "unipc:order=2"),
        ("unipc:order=3,form=eps,variant=bh1", "unipc:order=3,variant=bh1,form=eps"),
        ("heun", "heun"),
        ("edm", "edm"),
        ("pfdiff:k=1,l=1,base=heun", "pfdiff:k=1,l=1,base=heun"),
    ],
)
def test_names(text, name):
    assert str(parse_solver(text)) == name
    assert parse_solver(name) == parse_solver(text)


def test_the_reference_names_every_solver():
    text = (Path(pfdiff.__file__).parent / "docs/reference/solvers-schedules-grids.md").read_text(encoding="utf-8")
    for name in [*SOLVERS, "dpm-solver:2m", "dpm++:1s", *BASES]:
        assert re.search(rf"`{re.escape(name)}[`:]", text), name


def test_first_orders_are_ddim():
    ddim = pfdiff.compile("ddim", "linear:1000", 5).table
    for solver in ("deis:order=1", "ab:order=1", "ipndm:order=1"):
        np.testing.assert_array_equal(pfdiff.compile(solver, "linear:1000", 5).table, ddim)


ALL = [
    *("ddim", "dpm-solver:order=2", "dpm-solver:order=3", "dpm-solver:2m", "dpm-solver:3m", "dpm++:2s", "dpm++:3s"),
    *("dpm++:2m", "dpm++:3m", "deis:order=2", "deis:order=4", "deis:order=3,variant=rho", "ab:order=3", "ipndm"),
    *("unipc:order=1", "unipc:order=2,variant=bh1", "unipc:order=3", "unipc:order=3,form=eps", "heun", "edm"),
    *("pfdiff:k=2,l=1", "pfdiff:k=2,l=1,use=future", "pfdiff:k=2,l=1,base=dpm++2s", "pfdiff:k=1,l=1,base=heun"),
]


@pytest.mark.parametrize("schedule", ["linear:1000", "cosine:300", "vp", "edm", "flow:shift=3"])
@pytest.mark.parametrize("grid", ["uniform", "logsnr"])
def test_defined_everywhere_or_one_line(schedule, grid):
    """From the schedule's own start, to the clean point: a finite program, or one clear line."""
    refused, message = set(), "alpha is 0"
    for solver in ALL:
        nfe = {"edm": 7}.get(solver, 6)
        prediction = "flow" if schedule.startswith("flow") else "eps"
        try:
            program = pfdiff.compile(solver, schedule, nfe, grid=grid, prediction=prediction)
        except pfdiff.InputError as error:
            message = str(error)
            refused.add(solver)
            continue
        assert program.buffers == rank_bound(program.table) <= 5
        assert np.all(np.isfinite(program.W))
    assert "alpha is 0" in message
    assert "\n" not in message
    if schedule.startswith("flow") and grid == "uniform":
        # From alpha = 0 a method needs an x0 or a velocity, and no fraction of an infinite lambda.
        assert refused == {
            *("dpm-solver:order=2", "dpm-solver:order=3", "dpm-solver:2m", "dpm-solver:3m", "dpm++:2s", "dpm++:3s"),
            *("deis:order=3,variant=rho", "ab:order=3", "unipc:order=3,form=eps", "pfdiff:k=2,l=1,base=dpm++2s"),
        }
    else:
        assert refused == (set(ALL) if schedule.startswith("flow") else set())


@pytest.mark.parametrize("solver", ["ddim", "dpm++:3m", "deis:order=3", "ipndm", "unipc:order=3", "unipc:order=1"])
@pytest.mark.parametrize("nfe", [1, 2, 3])
def test_few_evaluations(solver, nfe):
    """With one evaluation every multistep method is DDIM; two and three have all orders cut."""
    program = pfdiff.compile(solver, "linear:1000", nfe, grid="trailing")
    assert np.all(np.isfinite(program.table))
    if nfe == 1:
        np.testing.assert_allclose(program.table, pfdiff.compile("ddim", "linear:1000", 1).table, rtol=1e-12)


@pytest.mark.parametrize("solver", ["dpm++:3m", "deis:order=3", "ipndm:order=3", "unipc:order=3", "edm"])
def test_flow_from_pure_noise_converges(solver):
    """From t = 1, where alpha is 0 and lambda infinite, to the clean point."""
    network = Mixture.of("flow", 3).network("flow")

    def sample(name, nfe):
        return pfdiff.compile(name, "flow", nfe, grid="uniform", prediction="flow").evaluate(network, NOISE)

    fine = sample("edm", 401)
    errors = [np.abs(sample(solver, nfe) - fine).max() for nfe in (21, 81)]
    assert errors[1] < 0.3 * errors[0]


def test_zero_terminal_signal(tmp_path):
    """A discrete schedule whose alphabar ends at 0, as rescaled ones do: x0 can start there, eps says why not."""
    path = tmp_path / "alphas.txt"
    np.savetxt(path, np.append(np.cumprod(1 - np.linspace(1e-3, 0.1, 99)), 0))
    for solver in ("unipc:order=3", "dpm++:3m", "deis:order=3"):
        program = pfdiff.compile(solver, f"alphas:{path}", 6, prediction="v", basis="x0")
        assert np.all(np.isfinite(program.table))
    with pytest.raises(pfdiff.InputError, match="alpha is 0"):
        pfdiff.compile("deis:order=3", f"alphas:{path}", 6, prediction="v")


@pytest.mark.parametrize(
    ("solver", "says"),
    [
        ("deis:order=5", "deis has order 1, 2, 3 or 4, got 5"),
        ("deis:variant=sigma", "deis has no variant 'sigma'; known: t, rho, lambda"),
        ("deis:order=x", "order must be a whole number, got 'x'"),
        ("ipndm:order=0", "ipndm has order 1, 2, 3 or 4, got 0"),
        ("ipndm:variant=other", "ipndm has no variant 'other'; known: fixed, variable"),
        ("unipc:order=4", "unipc has order 1, 2 or 3, got 4"),
        ("unipc:variant=bh3", "unipc has no variant 'bh3'; known: bh1, bh2"),
        ("unipc:form=v", "unipc has no form 'v'; known: eps, x0"),
        ("dpm-solver:4m", "dpm-solver has no variant '4m'; known: 2m, 3m"),
        ("dpm-solver:2m,order=2", "dpm-solver takes an order or a variant, not both"),
        ("heun", "heun evaluates 2 times a block; NFE 7 is no multiple of 2, use 6 or 8"),
        ("heun:order=2", "unexpected 'order=2'; heun takes no options"),
        ("edm", "edm evaluates 2n-1 times in n steps; NFE 8 is even, use 7 or 9"),
    ],
)
def test_bad_options(solver, says):
    check_refused(says, pfdiff.compile, solver, "linear:1000", 8 if solver == "edm" else 7)


@pytest.mark.parametrize("solver", ["deis:order=2", "ipndm:order=2", "heun", "edm", "pfdiff:k=1,l=1,base=heun"])
def test_a_v_that_turns_is_not_averaged(solver):
    with pytest.raises(pfdiff.InputError, match="which v is not fit for; use basis eps or x0"):
        pfdiff.compile(solver, "vp", 7 if solver == "edm" else 6, basis="v", t_start=0.9)
    assert pfdiff.compile(solver, "flow", 7 if solver == "edm" else 6, basis="v", t_start=0.9).basis == "v"
