"""Schedulers whose step draws noise: read as their class, their own step by default, equal to diffusers' own."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy as np
import pytest
import torch

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
    x = torch.randn(2, 3, 4, 4, generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        out = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(out, t, x, generator=generator, **options).prev_sample
    return x


def config_of(name: str, **options: Any) -> dict[str, Any]:
    return {**getattr(diffusers, name)(**options).config, "_class_name": name}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_every_parameter_of_a_class_is_accounted_for(name: str) -> None:

    assert (
        set(inspect.signature(getattr(diffusers, name).__init__).parameters) - {"self"} == STOCHASTIC[name].parameters
    )


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
