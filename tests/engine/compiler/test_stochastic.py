"""Samplers that draw noise: moments in closed form, their order, diffusers with the same noise injected, edges."""

from __future__ import annotations

import importlib
import json
import sys
import types
import warnings

import numpy as np
import pytest

import pfdiff
from pfdiff.engine.compiler.lower import rank_bound
from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.engine.compiler.solvers import parse_solver
from pfdiff.engine.compiler.solvers.ddim import Ddim
from pfdiff.engine.philox import fill_numpy

from ...gaussian import marginal, moments
from ...oracle import Mixture

LINEAR = parse_schedule("linear:1000")
NOISE = np.random.default_rng(3).standard_normal((2, 3, 4))
XI = np.random.default_rng(4).standard_normal((32, 2, 3, 4))
TIMES = [980, 870, 800, 655, 500, 410, 250, 130, 40]
START = {"flow:shift=3": 0.98}
# Solver -> state buffers.
SOLVERS = {
    "ddpm": 1,
    "ddpm:variance=large": 1,
    "ddim:eta=0.5": 1,
    "euler-a": 1,
    "dpm++:sde": 2,
    "dpm++:2m-sde": 2,
    "dpm++:3m-sde": 3,
    "dpm++:3m-sde-diffusers": 3,
    "sa:predictor=1,corrector=0": 1,
    "sa": 3,
    "sa:predictor=3,corrector=3,tau=0.5": 4,
    "lcm": 1,
    "tcd:gamma=0.3": 1,
    "consistency": 1,
}


@pytest.mark.parametrize("schedule", ["linear:1000", "vp", "edm", "flow:shift=3"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_buffers_are_the_rank_bound_and_updates_are_the_table(solver, schedule):
    """A draw needs no buffer. Run on unit vectors, the in-place updates reproduce every row."""
    nfe = 7
    program = pfdiff.compile(solver, schedule, nfe, grid="karras", basis="eps", t_start=START.get(schedule))
    noises = program.noises
    assert program.table.shape == (nfe + 1, 1 + noises + nfe)
    assert program.buffers == rank_bound(program.table, program.draws) == SOLVERS[solver]
    assert np.count_nonzero(program.V.any(axis=1)) == noises == len(program.draws) > 0
    unit, asked = np.eye(1 + noises + nfe), []

    def network(y, t):
        asked.append(y)
        return unit[noises + len(asked)]

    sample = program.evaluate(network, unit[0], steps_noise=unit[1 : 1 + noises])
    scale = np.abs(program.table).max(1, keepdims=True)
    np.testing.assert_allclose(np.array([*asked, sample]) / scale, program.table / scale, atol=3e-11)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_draw_is_used_after_it_is_made(solver):
    """Row n knows the draws made after the evaluations before n, and no output of its own or later."""
    program = pfdiff.compile(solver, "vp", 7, grid="karras")
    for n, row in enumerate(program.table[:-1]):
        late = [k for k, after in enumerate(program.draws) if after >= n]
        assert not row[1 : 1 + program.noises][late].any()
        assert not row[1 + program.noises + n :].any()


# Normal data: the sample is normal, its mean and variance are sums over the table.
def test_moments_from_the_table_are_those_of_samples():
    """200,000 draws of every noise; the mean is 5 deviations of a mean away at most."""
    oracle, count = Mixture.of("vp"), 200_000
    for solver in ("ddpm", "dpm++:2m-sde", "sa"):
        program = pfdiff.compile(solver, "vp", 5, grid="logsnr", basis="eps")
        mean, variance = moments(program, oracle)
        samples = program.evaluate(
            oracle.network(), np.random.default_rng(0).standard_normal(count), seeds=range(count)
        )
        assert samples.mean() == pytest.approx(mean, abs=5 * np.sqrt(variance / count))
        assert samples.var() == pytest.approx(variance, rel=5 * np.sqrt(2 / count))


def test_ddpm_keeps_the_variance_that_a_single_step_loses():
    """One DDPM step from s to t on normal data, by hand."""
    oracle, s, t = Mixture.of("linear:1000"), 700, 300
    program = pfdiff.compile("ddpm", "linear:1000", 1, grid=[s, t], basis="eps")
    (a_s, a_t), (s_s, s_t) = LINEAR.alpha([s, t]), LINEAR.sigma([s, t])
    beta = 1 - a_s**2 / a_t**2
    shrink = a_s * 0.7**2 / (a_s**2 * 0.7**2 + s_s**2)  # x_0 = mean + shrink (x_s - a_s mean)
    slope = a_t * beta / s_s**2 * shrink + a_s / a_t * s_t**2 / s_s**2
    found = moments(program, oracle, (a_s * 0.4, 1.0))
    assert found == pytest.approx((a_t * 0.4, slope**2 + beta * s_t**2 / s_s**2), rel=1e-12)


ORDERS = {
    "ddpm": 1,
    "ddpm:variance=large": 1,
    "ddim:eta=0.5": 1,
    "euler-a": 1,
    "dpm++:sde": 2,
    "dpm++:2m-sde": 2,
    "dpm++:3m-sde": 2,  # halves the second difference
    "dpm++:3m-sde-diffusers": 1,
    "sa:predictor=1,corrector=0": 1,
    "sa:predictor=2,corrector=0": 2,
    "sa:predictor=2,corrector=2": 2,
    "sa:predictor=2,corrector=2,tau=0.4": 2,
}


@pytest.mark.parametrize("solver", ORDERS)
def test_order_of_the_marginals(solver):
    oracle, start, end = Mixture.of("vp"), 0.8, 0.25
    (mean, variance), (mean_end, variance_end) = marginal(oracle, start), marginal(oracle, end)
    errors, counts = [], [48, 96, 192]
    for nfe in counts:
        nfe = nfe - (solver == "dpm++:sde")
        program = pfdiff.compile(solver, "vp", nfe, grid="logsnr", basis="eps", t_start=start, end=end)
        found = moments(program, oracle, (mean, variance**0.5))
        assert found[0] == pytest.approx(mean_end, abs=1e-12)
        errors.append(abs(found[1] - variance_end))
    assert errors[-1] < 0.005
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(ORDERS[solver], abs=0.25)


# Names and relations.
def test_relations():
    def table(solver):
        return pfdiff.compile(solver, "linear:1000", 5, grid="trailing", basis="eps").table

    np.testing.assert_allclose(table("ddpm"), table("ddim:eta=1"), atol=1e-13)
    np.testing.assert_allclose(table("sa:predictor=1,corrector=0"), table("ddpm"), atol=1e-12)
    assert str(parse_solver("euler-a")) == "ddim:eta=1"
    assert str(parse_solver("euler-a:eta=0")) == str(parse_solver("ddim:eta=0")) == "ddim"
    for text in (*SOLVERS, "ddim:eta=0.1234567890123", "sa:tau=0.3,low=200,high=800", "lcm:scaling=4"):
        assert str(parse_solver(str(parse_solver(text)))) == str(parse_solver(text))
    assert parse_solver("ddim:eta=0.1234567890123") == Ddim(0.1234567890123)


def test_no_noise_without_eta_tau_or_gamma():
    for solver in ("ddim:eta=0", "sa:tau=0", "sa:tau=1,low=2000", "tcd:gamma=0"):
        assert pfdiff.compile(solver, "linear:1000", 5, grid="trailing", end="first").noises == 0
    ddim = pfdiff.compile("ddim", "linear:1000", 5, grid="trailing", end="first", basis="eps")
    tcd = pfdiff.compile("tcd:gamma=0", "linear:1000", 5, grid="trailing", end="first", basis="eps")
    np.testing.assert_allclose(tcd.table, ddim.table, atol=1e-14)


# diffusers with the same noise.
@pytest.fixture(autouse=True)
def theirs_warn():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array", DeprecationWarning)
        yield


@pytest.fixture
def injected(monkeypatch):
    """Make a scheduler's module draw `XI[n]` in its n-th step: set `injected(module).n` before the step."""

    class Drawn:
        n = 0

    def patch(scheduler, torch):
        module = importlib.import_module(type(scheduler).__module__)
        monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: torch.from_numpy(XI[Drawn.n]))
        return Drawn

    return patch


def drive(scheduler, network, x, injected, scale=None, **options):
    """Samples of a diffusers scheduler whose times are set; states in float64; scale: of the network's input."""
    import torch

    drawn = injected(scheduler, torch)
    x = torch.from_numpy(x)
    for n, t in enumerate(scheduler.timesteps):
        drawn.n = n
        given = x if scale is None else x * scale[n]
        out = torch.from_numpy(network(given.numpy(), t.item()))
        x = scheduler.step(out, t, x, return_dict=False, **options)[0].double()
    return x.numpy()


def ours(solver, schedule, network, noise, nfe, **options):
    program = pfdiff.compile(solver, schedule, nfe, **options)
    return program.evaluate(network, noise, steps_noise=XI[list(program.draws)])


def ratios(times):
    return np.array([float(LINEAR.sigma(t) / LINEAR.alpha(t)) for t in times])


def scheduler_of(name, **options):
    """A diffusers scheduler with our float64 tables; the last time is that of the clean point."""
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    scheduler = getattr(diffusers, name)(**options)
    scheduler.alphas_cumprod = torch.from_numpy(LINEAR.alpha(np.arange(1000)) ** 2)
    scheduler.final_alpha_cumprod = scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    return scheduler, torch


@pytest.mark.parametrize(
    ("solver", "order", "last"),
    [("ddpm", 1, -1), ("dpm++:2m-sde", 2, -1), ("dpm++:2m-sde", 2, 3), ("dpm++:3m-sde-diffusers", 3, -1)],
)
def test_sde_multistep_against_diffusers(solver, order, last, injected):
    options = {} if last == -1 else {"final_sigmas_type": "sigma_min", "lower_order_final": False}
    scheduler, torch = scheduler_of(
        "DPMSolverMultistepScheduler", solver_order=order, algorithm_type="sde-dpmsolver++", **options
    )
    scheduler.set_timesteps(len(TIMES))
    scheduler.timesteps, scheduler.sigmas = torch.tensor(TIMES), torch.from_numpy(ratios([*TIMES, last]))
    scheduler.set_begin_index(0)
    network = Mixture.of("linear:1000", 3).network()
    sample = ours(solver, "linear:1000", network, NOISE, len(TIMES), grid=[*TIMES, last])
    np.testing.assert_allclose(sample, drive(scheduler, network, NOISE, injected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("predictor", "corrector"), [(1, 1), (2, 2), (3, 3), (3, 4), (2, 3)])
@pytest.mark.parametrize("window", ["", ",low=200,high=800"])
def test_sa_against_diffusers(predictor, corrector, window, injected):
    """Without the lower orders at the end, which theirs takes at a last time that is not clean."""
    scheduler, torch = scheduler_of(
        "SASolverScheduler", predictor_order=predictor, corrector_order=corrector, lower_order_final=False
    )
    scheduler.tau_func = lambda t: torch.tensor(1.0 if not window or 200 <= t <= 800 else 0.0, dtype=torch.float64)
    scheduler.set_timesteps(len(TIMES))
    scheduler.timesteps, scheduler.sigmas = torch.tensor(TIMES), torch.from_numpy(ratios([*TIMES, 3]))
    scheduler.set_begin_index(0)
    network = Mixture.of("linear:1000", 3).network()
    solver = f"sa:predictor={predictor},corrector={corrector},tau=1{window}"
    sample = ours(solver, "linear:1000", network, NOISE, len(TIMES), grid=[*TIMES, 3])
    np.testing.assert_allclose(sample, drive(scheduler, network, NOISE, injected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("solver", "options"), [("ddpm", {}), ("ddpm:variance=large", {"variance_type": "fixed_large"})]
)
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("clip", [None, 0.6])
def test_ddpm_against_diffusers(solver, options, prediction, clip, injected):
    kind = {"eps": "epsilon", "v": "v_prediction"}[prediction]
    scheduler, _ = scheduler_of(
        "DDPMScheduler", prediction_type=kind, clip_sample=clip is not None, clip_sample_range=clip or 1.0, **options
    )
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[-1] == 0
    times = [*map(float, scheduler.timesteps), -1.0]
    network = Mixture.of("linear:1000", 3).network(prediction)
    sample = ours(solver, "linear:1000", network, NOISE, 10, grid=times, prediction=prediction, clip=clip)
    np.testing.assert_allclose(sample, drive(scheduler, network, NOISE, injected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_eta_against_diffusers(eta, injected):
    scheduler, _ = scheduler_of("DDIMScheduler", clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    times = [*map(float, scheduler.timesteps), -1.0]
    network = Mixture.of("linear:1000", 3).network()
    sample = ours(f"ddim:eta={eta}", "linear:1000", network, NOISE, 10, grid=times)
    theirs = drive(scheduler, network, NOISE, injected, eta=eta)
    np.testing.assert_allclose(sample, theirs, rtol=1e-5, atol=1e-5)


def test_euler_ancestral_against_diffusers(injected):
    """States there are x / alpha, and float32 inside."""
    scheduler, torch = scheduler_of("EulerAncestralDiscreteScheduler")
    scheduler.set_timesteps(len(TIMES))
    sigmas = ratios([*TIMES, -1])
    scheduler.timesteps, scheduler.sigmas = torch.tensor(TIMES, dtype=torch.float64), torch.from_numpy(sigmas)
    scheduler.is_scale_input_called = True
    network = Mixture.of("linear:1000", 3).network()
    alphas = LINEAR.alpha(TIMES)
    theirs = drive(scheduler, network, NOISE / alphas[0], injected, scale=alphas)
    sample = ours("euler-a", "linear:1000", network, NOISE, len(TIMES), grid=[*TIMES, -1])
    np.testing.assert_allclose(sample, theirs, rtol=1e-5, atol=1e-5)


def test_sde_against_diffusers(monkeypatch):
    """DPMSolverSDEScheduler on sigmas of its own; its two noises of a step come from one Brownian motion.

    torchsde would only draw that noise, which is injected here: an empty module stands for it.
    """
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
    name = "diffusers.schedulers.scheduling_dpmsolver_sde"
    scheduler = importlib.import_module(name).DPMSolverSDEScheduler()
    sigmas = np.array([60.0, 20.0, 7.0, 2.0, 0.4, 0.1])
    nfe = 2 * len(sigmas) - 1
    middles = np.sqrt(sigmas[:-1] * sigmas[1:])
    fed = np.stack([sigmas, np.append(middles, 0)], 1).ravel()[:nfe]
    scheduler.set_timesteps(len(sigmas))
    doubled = np.concatenate([sigmas[:1], sigmas[1:].repeat(2), [0.0]])
    scheduler.sigmas = torch.from_numpy(doubled)
    scheduler.timesteps = torch.from_numpy(fed)
    scheduler.set_begin_index(0)
    state = {"n": 0}

    def brownian(sigma, sigma_next):
        n = state["n"]
        if n % 2 == 0:
            return torch.from_numpy(XI[n])
        first = float((sigma - middles[n // 2]) / (sigma - sigma_next))
        return torch.from_numpy(np.sqrt(first) * XI[n - 1] + np.sqrt(1 - first) * XI[n])

    scheduler.noise_sampler = brownian
    network = Mixture.of("edm", 3).network()
    x = torch.from_numpy(NOISE * sigmas[0])
    for n, sigma in enumerate(fed):
        state["n"] = n
        out = torch.from_numpy(network(x.numpy(), sigma))
        x = scheduler.step(out, scheduler.timesteps[n], x).prev_sample
    sample = ours("dpm++:sde", "edm", network, NOISE, nfe, grid=[*sigmas, 0.0])
    np.testing.assert_allclose(sample, x.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clip", [None, 0.6])
@pytest.mark.parametrize("steps", [1, 4])
def test_lcm_against_diffusers(clip, steps, injected):
    scheduler, _ = scheduler_of("LCMScheduler", clip_sample=clip is not None, clip_sample_range=clip or 1.0)
    scheduler.set_timesteps(steps)
    times = [*map(float, scheduler.timesteps), -1.0]
    network = Mixture.of("linear:1000", 3).network()
    sample = ours("lcm", "linear:1000", network, NOISE, steps, grid=times, clip=clip)
    np.testing.assert_allclose(sample, drive(scheduler, network, NOISE, injected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_tcd_against_diffusers(gamma, injected):
    """Its last step ends at time 0, not at the clean point."""
    scheduler, _ = scheduler_of("TCDScheduler")
    scheduler.set_timesteps(4)
    times = [*map(float, scheduler.timesteps), 0.0]
    network = Mixture.of("linear:1000", 3).network()
    sample = ours(f"tcd:gamma={gamma}", "linear:1000", network, NOISE, 4, grid=times)
    theirs = drive(scheduler, network, NOISE, injected, eta=gamma)
    np.testing.assert_allclose(sample, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_consistency_models_against_diffusers(clip, steps, injected):
    """The network is fed c_in x, and 250 ln(sigma) there, ln(sigma) / 4 by the program."""
    scheduler, _ = scheduler_of("CMStochasticIterativeScheduler", clip_denoised=clip is not None)
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double()
    scheduler.sigmas, scheduler.is_scale_input_called = sigmas, True
    scheduler.set_begin_index(0)
    times = np.minimum(sigmas.numpy()[:-1], 80)
    c_in = 1 / np.sqrt(times**2 + 0.25)
    fed = []

    def network(x, t):
        return np.tanh(1.3 * x + 0.2 * t)

    def recorded(x, t):
        fed.append(t)
        return network(x, t)

    theirs = drive(scheduler, lambda x, t: network(x, t / 1000), NOISE * 80, injected, scale=c_in)
    sample = ours("consistency", "edm", recorded, NOISE, steps, grid=[*times, 0.0], prediction="consistency", clip=clip)
    np.testing.assert_allclose(np.array(fed) * 1000, scheduler.timesteps.numpy(), rtol=1e-5)
    np.testing.assert_allclose(sample, theirs, rtol=1e-5, atol=1e-5)


# Refusals.
@pytest.mark.parametrize(
    ("solver", "options", "says"),
    [
        ("ddim:eta=1.5", {}, "eta between 0 and 1, got 1.5"),
        ("ddim:eta=much", {}, "eta must be a number, got 'much'"),
        ("tcd:gamma=-1", {}, "gamma between 0 and 1, got -1"),
        ("lcm:scaling=0", {}, "scaling above 0, got 0"),
        ("ddpm:variance=learned", {}, "no variance 'learned'; known: small, large"),
        ("sa:predictor=5", {}, "predictors 1 to 4 and correctors 0 to 4, got 5, 2"),
        ("sa:tau=-1", {}, "a tau of at least 0"),
        ("dpm++:sde", {"nfe": 6}, "NFE 6 is even, use 5 or 7"),
        ("dpm++:sde", {"grid": [500, 499, 400, -1]}, "needs a time between 500 and 499"),
        ("consistency", {"schedule": "edm", "prediction": "consistency", "grid": [9.0, 2.0, 0.5, 0.002, 0.0], "nfe": 4},
         "gives x_t itself at time 0.002"),
    ],
)  # fmt: skip
def test_bad_arguments(solver, options, says):
    with pytest.raises(pfdiff.InputError) as caught:
        pfdiff.compile(**{"solver": solver, "schedule": "linear:1000", "nfe": 5, **options})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


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
