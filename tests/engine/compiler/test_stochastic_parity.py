"""Samplers that draw noise against those of diffusers with the same noise injected."""

from __future__ import annotations

import importlib
import sys
import types
import warnings

import numpy as np
import pytest

import pfdiff
from pfdiff.engine.compiler.schedule import parse_schedule

from ...oracle import Mixture

LINEAR = parse_schedule("linear:1000")
NOISE = np.random.default_rng(3).standard_normal((2, 3, 4))
XI = np.random.default_rng(4).standard_normal((32, 2, 3, 4))
TIMES = [980, 870, 800, 655, 500, 410, 250, 130, 40]


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
