"""Schedulers whose step draws noise: read as their class, their own step by default, equal to diffusers' own."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from pfdiff.engine.compiler.compile import compile
from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.engine.compiler.solvers import parse_solver
from pfdiff.engine.errors import InputError
from pfdiff.export.pipelines.stochastic_classes import STOCHASTIC
from pfdiff.export.sources.diffusers_config import read_config

diffusers = pytest.importorskip("diffusers")

from pfdiff.export.diffusers_scheduler import PFDiffScheduler  # noqa: E402  # it needs diffusers

LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SDE = {"algorithm_type": "sde-dpmsolver++"}


@pytest.fixture(autouse=True)
def theirs_warn() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array", DeprecationWarning)
        yield


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(0.8 * x) + 0.0003 * t.to(x.dtype)


def sample(scheduler: Any, steps: int, **options: Any) -> torch.Tensor:
    """As a pipeline does: noise by its first standard deviation, one generator for all that is drawn."""
    generator = torch.Generator().manual_seed(5)
    scheduler.set_timesteps(steps)
    x = torch.randn(2, 3, 4, 4, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = network(scaled, t)
        x = scheduler.step(out, t, x, generator=generator, **options).prev_sample
    return x


def sa_of(predictor: int, corrector: int, low: str = "200", high: str = "800") -> str:
    return f"sa:predictor={predictor},corrector={corrector},tau=1,low={low},high={high}"


def class_of(name: str) -> Any:
    """Also the one that needs torchsde, which would only draw its noise: an empty module stands for that."""
    if name != "DPMSolverSDEScheduler":
        return getattr(diffusers, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
        return importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde").DPMSolverSDEScheduler


def config_of(name: str, **options: Any) -> dict[str, Any]:
    return {**getattr(diffusers, name)(**options).config, "_class_name": name}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_every_parameter_of_a_class_is_accounted_for(name: str) -> None:
    assert set(inspect.signature(class_of(name).__init__).parameters) - {"self"} == STOCHASTIC[name].parameters


@pytest.mark.parametrize(
    ("name", "options", "solver"),
    [
        ("LCMScheduler", {}, "lcm"),
        ("LCMScheduler", {"timestep_scaling": 4.0, "clip_sample": True}, "lcm:scaling=4"),
        ("LCMScheduler", {"prediction_type": "v_prediction", "original_inference_steps": 20}, "lcm"),
        ("TCDScheduler", {}, "tcd:gamma=0.3"),
        ("CMStochasticIterativeScheduler", {}, "consistency"),
        ("CMStochasticIterativeScheduler", {"clip_denoised": False, "num_train_timesteps": 18}, "consistency"),
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1, **LATENT}, "ddim:eta=1"),
        ("FlowMatchLCMScheduler", {}, "lcm"),
        ("FlowMatchLCMScheduler", {"shift": 3.0, "num_train_timesteps": 500}, "lcm"),
        ("SASolverScheduler", {}, sa_of(2, 2)),
        ("SASolverScheduler", {"predictor_order": 3, "corrector_order": 4, **LATENT}, sa_of(3, 4)),
        ("SASolverScheduler", {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}, sa_of(2, 2)),
        ("SASolverScheduler", {"timestep_spacing": "leading", "steps_offset": 1, "predictor_order": 1}, sa_of(1, 2)),
        ("DPMSolverMultistepScheduler", {**SDE, "solver_order": 1}, "ddim:eta=1"),
        ("DPMSolverMultistepScheduler", {**SDE, **LATENT}, "dpm++:2m-sde"),
        ("DPMSolverMultistepScheduler", {**SDE, "solver_order": 3}, "dpm++:3m-sde-diffusers"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:NFE 1 starts from pure noise")
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_its_own_step_is_the_default_and_equal(name: str, options: dict[str, Any], solver: str, steps: int) -> None:
    config = config_of(name, **options)
    ours, theirs = PFDiffScheduler.from_config(config), getattr(diffusers, name)(**options)
    own = {"eta": 0.3} if name == "TCDScheduler" else {}
    found, expected = sample(ours, steps), sample(theirs, steps, **own)
    assert ours.program is not None
    assert ours.program.solver == solver
    np.testing.assert_allclose(ours.timesteps.double(), theirs.timesteps.double(), rtol=1e-5)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)  # float32 tables and states there


@pytest.mark.filterwarnings("ignore:NFE 1 starts from pure noise")
@pytest.mark.parametrize("options", [LATENT, {"use_karras_sigmas": True, **LATENT}, {"timestep_spacing": "trailing"}])
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_the_sde_scheduler_has_its_times(options: dict[str, Any], steps: int) -> None:
    """Rounded, and with Karras sigmas moved apart at the end; its noise cannot be injected through its interface.

    With the noise of our draws test_stochastic_parity.py has equal samples.
    """
    theirs = class_of("DPMSolverSDEScheduler")(**options)
    theirs.set_timesteps(steps)
    convention = read_config({**theirs.config, "_class_name": "DPMSolverSDEScheduler"})
    assert convention.solver == "dpm++:sde"
    nfe = 2 * steps - 1
    grid = convention.walk(parse_solver("dpm++:sde"), nfe)
    program = compile("dpm++:sde", convention.schedule, nfe, grid)
    apart = 3 if options.get("use_karras_sigmas") else 1
    assert np.abs(program.times - theirs.timesteps.numpy()).max() <= apart
    scheduler = PFDiffScheduler.from_config({**theirs.config, "_class_name": "DPMSolverSDEScheduler"})
    scheduler.set_timesteps(nfe)
    assert scheduler.timesteps.tolist() == program.times.tolist()


def test_neighbouring_times_have_no_middle() -> None:
    """The step then takes the mean of the x0 at both ends: k-diffusion's r = 1, in float64."""
    program = compile("dpm++:sde", "linear:1000", 3, [500.0, 499.0, -1.0], basis="x0")
    process = parse_schedule("linear:1000")
    (a_s, a_t), (s_s, s_t) = process.alpha([500, 499]), process.sigma([500, 499])
    h = np.log(a_t / s_t) - np.log(a_s / s_s)
    rng = np.random.default_rng(0)
    x, xi = rng.standard_normal(5), rng.standard_normal((2, 5))

    def step(d: np.ndarray) -> np.ndarray:
        kept, drawn = s_t / s_s * np.exp(-h), s_t * np.sqrt(1 - np.exp(-2 * h))
        return kept * x + a_t * (1 - np.exp(-2 * h)) * d + drawn * xi[0]

    def data(y: np.ndarray, t: float) -> np.ndarray:
        return np.tanh(y) + 0.001 * t

    def eps(y: np.ndarray, t: float) -> np.ndarray:
        return (y - float(process.alpha(t)) * data(y, t)) / float(process.sigma(t))

    after = step(0.5 * (data(x, 500) + data(step(data(x, 500)), 499)))
    found = program.evaluate(eps, x, steps_noise=xi[: program.noises])
    np.testing.assert_allclose(found, data(after, 499), rtol=1e-10)


def test_published_times() -> None:
    lcm = {"_class_name": "LCMScheduler", **LATENT}
    assert read_config(lcm).points(4) == (999, 759, 499, 259, -1)
    assert read_config({**lcm, "_class_name": "TCDScheduler"}).points(4) == (999, 759, 499, 259, 0)
    consistency = read_config({"_class_name": "CMStochasticIterativeScheduler"})
    points = consistency.points(1)
    assert points is not None
    assert consistency.time_scale * np.log(points[0]) / 4 == pytest.approx(1095.5, abs=0.1)


def test_lcm_and_tcd_have_the_same_keys() -> None:
    with pytest.raises(InputError, match="LCMScheduler or of TCDScheduler"):
        PFDiffScheduler.from_config(diffusers.LCMScheduler().config)


def test_generators_and_eta() -> None:
    scheduler = PFDiffScheduler.from_config(config_of("LCMScheduler"))
    scheduler.set_timesteps(3)
    x = torch.zeros(2, 3, 4, 4)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    both = scheduler.step(x, scheduler.timesteps[0], x, generator=generators).prev_sample
    scheduler.set_timesteps(3)
    alone = scheduler.step(x[1:], scheduler.timesteps[0], x[1:], generator=torch.Generator().manual_seed(2)).prev_sample
    assert torch.equal(both[1:], alone)
    with pytest.raises(InputError, match="say it in the solver"):
        scheduler.step(x, scheduler.timesteps[1], both, eta=0.3)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"_class_name": "LCMScheduler", "thresholding": True}, "thresholds dynamically"),
        ({"_class_name": "FlowMatchLCMScheduler", "scale_factors": [0.5]}, "has scale_factors, which change"),
        ({"_class_name": "SASolverScheduler", "algorithm_type": "noise_prediction"}, "set it to data_prediction"),
        ({"_class_name": "SASolverScheduler", "tau_func": "f"}, "has a tau_func, which no config can hold"),
        ({"_class_name": "CMStochasticIterativeScheduler", "s_noise": 1.1}, "s_noise 1.1, expected 1"),
        ({"_class_name": "CMStochasticIterativeScheduler", "rho": 5}, "rho 5, expected 7"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
            "solver_type 'heun' of an SDE",
        ),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver"}, "whose step is not here"),
    ],
)
def test_what_is_not_read_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_config(config)


def test_too_many_evaluations() -> None:
    with pytest.raises(InputError, match="distilled on 50 times"):
        read_config({"_class_name": "LCMScheduler"}).points(51)
    with pytest.raises(InputError, match="with 40 times"):
        read_config({"_class_name": "CMStochasticIterativeScheduler"}).points(41)
