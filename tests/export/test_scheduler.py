"""`PFDiffScheduler` in a pipeline's loop, against programs and diffusers' schedulers."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pfdiff
from pfdiff.engine.errors import BackendError, InputError

diffusers = pytest.importorskip("diffusers")
# diffusers turns tensors into NumPy 2 arrays in a way that PyTorch does not know yet.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

Network = Callable[[Any, Any], Any]
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def make(config: Any, **options: Any) -> Any:
    return pfdiff.PFDiffScheduler.from_config(config, **options)


def start(seed: int = 0, shape: tuple[int, ...] = (2, 3, 5, 7)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(x: Any, t: Any) -> Any:
    return 0.9 * (1.3 * x + float(t) / 1000).tanh()


def sample(scheduler: Any, steps: int, x: torch.Tensor, net: Network = network, **options: Any) -> torch.Tensor:
    """A pipeline's loop."""
    scheduler.set_timesteps(steps)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        out = net(scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x, t)
        x = scheduler.step(out, t, x, **options).prev_sample
    return x


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert (actual - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


# Against diffusers' schedulers, in float64 but for their float32 tables.
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("one", [True, False])
@pytest.mark.parametrize("steps", [4, 10])
def test_ddim_is_diffusers_ddim(spacing: str, prediction: str, one: bool, steps: int) -> None:
    theirs = diffusers.DDIMScheduler(
        timestep_spacing=spacing,
        prediction_type=prediction,
        set_alpha_to_one=one,
        steps_offset=1,
        clip_sample=False,
        **LATENT,
    )
    ours = make(theirs.config, solver="ddim")
    expected = sample(theirs, steps, start())
    assert_close(sample(ours, steps, start()), expected)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()


def test_clipped_ddim_is_diffusers_ddim() -> None:
    theirs = diffusers.DDIMScheduler(clip_sample_range=0.8, steps_offset=1)
    expected = sample(theirs, 10, start(), use_clipped_model_output=True)
    assert_close(sample(make(theirs.config, solver="ddim"), 10, start()), expected, 1e-4)


def test_zero_terminal_snr_is_diffusers_ddim() -> None:
    theirs = diffusers.DDIMScheduler(
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
        clip_sample=False,
        **LATENT,
    )
    expected = sample(theirs, 5, start())
    ours = make(theirs.config, solver="ddim")
    assert_close(sample(ours, 5, start()), expected)
    assert ours.timesteps[0] == 999
    assert torch.isfinite(sample(make(theirs.config), 5, start())).all()  # PFDiff starts there too


def test_multistep_is_diffusers_multistep() -> None:
    theirs = diffusers.DPMSolverMultistepScheduler(solver_order=2, timestep_spacing="trailing", **LATENT)
    expected = sample(theirs, 10, start())
    assert_close(sample(make(theirs.config, solver="dpm++:2m"), 10, start()), expected, 1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_on_flow_is_diffusers_flow_match_euler(shift: float) -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    expected = sample(theirs, 8, start())
    ours = make(theirs.config, solver="ddim")
    assert_close(sample(ours, 8, start()), expected)
    assert_close(ours.timesteps, theirs.timesteps)


def test_euler_on_edm_is_diffusers_edm_euler() -> None:
    theirs = diffusers.EDMEulerScheduler()
    ours = make(theirs.config, solver="ddim")
    theirs.set_timesteps(8)
    ours.set_timesteps(8)
    expected = actual = 80.0 * start()
    for t in theirs.timesteps:
        expected = theirs.step((theirs.scale_model_input(expected, t) + t).tanh(), t, expected).prev_sample
    for t in ours.timesteps:
        actual = ours.step((ours.scale_model_input(actual, t) + t).tanh(), t, actual).prev_sample
    assert_close(actual, expected)


# Against our own programs.
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
@pytest.mark.parametrize(
    "solver", ["pfdiff:k=2,l=1", "pfdiff:k=1,l=1,base=dpm-solver-2", "dpm++:2m", "dpm-solver:order=2"]
)
def test_a_loop_is_the_program(solver: str, prediction: str) -> None:
    if prediction == "flow":
        theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    else:
        theirs = diffusers.DDIMScheduler(prediction_type=prediction, clip_sample=False, **LATENT)
    options = {"grid": "uniform", "t_start": 0.95} if prediction == "flow" and "dpm" in solver else {}
    ours = make(theirs.config, solver=solver, **options)
    scale = 1000 if prediction == "flow" else 1
    x = start().double()
    actual = sample(ours, 6, x)
    assert ours.program.nfe == 6
    assert ours.timesteps.dtype == (torch.float32 if prediction == "flow" else torch.int64)
    exact = ours.program.evaluate(lambda y, t: network(y, np.float32(scale * t)), x)
    torch.testing.assert_close(actual, exact, rtol=1e-9, atol=1e-9)
    single = sample(ours, 6, x.float())
    assert_close(single.double(), exact, 1e-4)


def test_states_stay_float32_in_half_precision_pipelines() -> None:
    ours = make(diffusers.DDIMScheduler(clip_sample=False, **LATENT).config)
    exact = sample(ours, 8, start().double(), lambda x, t: network(x, t).half())
    half = sample(ours, 8, start().half(), lambda x, t: network(x, t).half())
    assert half.dtype == torch.float16
    assert_close(half.double(), exact, 5e-3)


def test_edits_of_the_latents_are_kept() -> None:
    """Inpainting writes into the latents between steps; DDIM has no other state."""
    theirs = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, **LATENT)
    ours = make(theirs.config, solver="ddim")
    results = []
    for one in (theirs, ours):
        one.set_timesteps(5)
        x = start()
        for t in one.timesteps:
            x = one.step(network(x, t), t, x, return_dict=False)[0]
            x[:, :, :2] = 0.25 * float(t) / 1000
        results.append(x)
    assert_close(results[1], results[0])


@pytest.mark.parametrize("solver", ["ddim", "pfdiff:k=2,l=1", "pfdiff:k=3,l=2", "dpm++:2m", "dpm-solver:order=2"])
def test_image_to_image_starts_inside_at_the_same_times(solver: str) -> None:
    ours = make(diffusers.DDIMScheduler(clip_sample=False, **LATENT).config, solver=solver)
    ours.set_timesteps(6)
    times = ours.timesteps.clone()
    ours.set_begin_index(2)
    x, asked = start(), []
    for t in ours.timesteps[2:]:
        asked.append(int(t))
        x = ours.step(network(x, t), t, x, return_dict=False)[0]
    assert asked == times[2:].tolist()
    assert torch.isfinite(x).all()
    # A network that is exact for one clean sample is sampled to it from any start.
    clean = torch.full_like(x, 0.3)
    ours.set_timesteps(6)
    alphas = diffusers.DDIMScheduler(**LATENT).alphas_cumprod
    x = ours.add_noise(clean, start(), ours.timesteps[2:3])
    for t in ours.timesteps[2:]:
        alpha = alphas[t].sqrt()
        x = ours.step((x - alpha * clean) / (1 - alpha**2).sqrt(), t, x, return_dict=False)[0]
    assert_close(x, clean, 1e-3)


def test_single_step_solvers_do_not_start_inside_a_block() -> None:
    ours = make(diffusers.DDIMScheduler(**LATENT).config, solver="dpm-solver:order=2")
    ours.set_timesteps(6)
    ours.set_begin_index(1)
    with pytest.raises(InputError):
        ours.step(start(), ours.timesteps[1], start())


def test_add_noise_is_diffusers() -> None:
    theirs = diffusers.DDIMScheduler(**LATENT)
    times = torch.tensor([3, 900])
    clean, noise = start(1), start(2)
    expected = theirs.add_noise(clean, noise, times)
    assert_close(make(theirs.config).add_noise(clean, noise, times), expected)
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours = make(flow.config, solver="ddim")
    for one in (flow, ours):
        one.set_timesteps(4)
    expected = flow.scale_noise(clean, flow.timesteps[1:3], noise)
    assert_close(ours.scale_noise(clean, ours.timesteps[1:3], noise), expected)


def test_learned_variance_is_dropped() -> None:
    ours = make(diffusers.DDIMScheduler(**LATENT).config)
    plain = sample(ours, 4, start())
    assert torch.equal(sample(ours, 4, start(), lambda x, t: torch.cat([network(x, t), x], 1)), plain)


# Configs.
def test_saved_and_loaded(tmp_path: Path) -> None:
    theirs = diffusers.PNDMScheduler(steps_offset=1, skip_prk_steps=True, **LATENT)
    ours = make(theirs.config, solver="pfdiff:k=1,l=1", grid="logsnr", clip=2.0)
    expected = sample(ours, 5, start())
    ours.save_pretrained(tmp_path)
    again: Any = pfdiff.PFDiffScheduler.from_pretrained(tmp_path)
    assert type(again) is pfdiff.PFDiffScheduler
    assert torch.equal(sample(again, 5, start()), expected)
    assert again.program is not None
    assert ours.program.digest == again.program.digest
    theirs.save_pretrained(tmp_path / "theirs")
    read: Any = pfdiff.PFDiffScheduler.from_pretrained(tmp_path / "theirs", solver="ddim")
    assert read.config["steps_offset"] == 1
    assert read.config["set_alpha_to_one"] is False
    back = diffusers.PNDMScheduler.from_config(ours.config)
    assert back.config["skip_prk_steps"] is True
    assert make(ours.config, solver="ddim").config["solver"] == "ddim"


def test_copies_are_independent() -> None:
    ours = make(diffusers.DDIMScheduler(**LATENT).config)
    expected = sample(ours, 4, start())
    ours.set_timesteps(4)
    x = ours.step(network(start(), 0), ours.timesteps[0], start()).prev_sample
    twin = copy.deepcopy(ours)
    assert torch.equal(sample(twin, 4, start()), expected)
    assert ours.step_index == 1
    ours.step(network(x, 0), ours.timesteps[1], x)


def test_wrong_use_is_said() -> None:
    config = diffusers.DDIMScheduler(**LATENT).config
    x = start()
    with pytest.raises(InputError, match="call set_timesteps first"):
        make(config).step(x, 0, x)
    ours = make(config)
    ours.set_timesteps(2)
    for t in ours.timesteps:
        x = ours.step(x, t, x).prev_sample
    with pytest.raises(InputError, match="all 2 steps are done"):
        ours.step(x, ours.timesteps[-1], x)
    ours.set_timesteps(2)
    with pytest.raises(InputError, match="is none of"):
        ours.step(x, 500, x)
    for index in (-1, 2):
        with pytest.raises(InputError, match=f"begin_index {index}, expected 0"):
            ours.set_begin_index(index)
    with pytest.raises(InputError, match="eta 1"):
        ours.step(x, ours.timesteps[0], x, eta=1.0)
    with pytest.raises(InputError, match="expected the sample's"):
        ours.step(x[:1], ours.timesteps[0], x)
    with pytest.raises(InputError, match="give one of them"):
        ours.set_timesteps(timesteps=[3, 2], sigmas=[1.0, 0.5])
    with pytest.raises(InputError, match="unknown solver"):
        make(config, solver="magic")
    with pytest.raises(InputError, match="KarrasVeScheduler is not read"):
        make(diffusers.KarrasVeScheduler().config)


def test_without_diffusers_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pfdiff.export.diffusers_scheduler", raising=False)
    monkeypatch.setitem(sys.modules, "diffusers.configuration_utils", None)
    with pytest.raises(BackendError, match="pip install diffusers"):
        _ = pfdiff.PFDiffScheduler


# What users and pipelines do to schedulers.
def named(name: str, solver: str = "ddim", **options: Any) -> Any:
    return make({"_class_name": f"{name}Scheduler", **options}, solver=solver)


def times_of(scheduler: Any, steps: Any) -> list[int]:
    scheduler.set_timesteps(steps)
    return [int(t) for t in scheduler.timesteps]


def test_karras_sigmas_go_between_those_of_the_spaced_times() -> None:
    config = {"timestep_spacing": "leading", "steps_offset": 1, "use_karras_sigmas": True, **LATENT}
    assert times_of(named("EulerDiscrete", "euler", **config), 4) == [751, 411, 69, 1]


def test_karras_sigmas_of_a_flow() -> None:
    flow = {"solver_order": 2, "prediction_type": "flow_prediction", "use_flow_sigmas": True}
    ramp = {"use_karras_sigmas": True, "sigma_min": 0.01, "sigma_max": 200}
    assert times_of(named("UniPCMultistep", "unipc:order=2", **flow, **ramp), 4) == [995, 963, 593, 9]


def test_the_last_order_is_lowered_before_the_first_trained_time() -> None:
    ours = named("UniPCMultistep", "unipc:order=2", solver_order=2, final_sigmas_type="sigma_min", **LATENT)
    result = sample(ours, 4, torch.ones(1, 1), lambda x, t: x * float(t) / (float(t) + 1))
    assert float(result) == pytest.approx(0.4302, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FlowMatchEulerDiscrete", {"stochastic_sampling": True}),
    ],
)
def test_what_draws_noise_in_a_way_that_is_not_read_is_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="draws noise"):
        named(name, **options)
    live = getattr(diffusers, f"{name}Scheduler")(**options)  # its config does not say its class
    with pytest.raises(InputError, match="draws noise"):
        make(live.config)


def test_multistep_solvers_take_the_leading_rule_of_their_own_class() -> None:
    file = {
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        **LATENT,
    }
    theirs = diffusers.DPMSolverMultistepScheduler.from_config({"_class_name": "PNDMScheduler", **file})
    theirs.set_timesteps(4)
    assert times_of(named("PNDM", "dpm++:2m", **file), 4) == theirs.timesteps.tolist() == [801, 601, 401, 201]
    assert times_of(named("PNDM", "ddim", **file), 4) == [751, 501, 251, 1]


def test_a_step_at_another_time_than_the_next_is_refused() -> None:
    ours = named("DDIM", clip_sample=False)
    ours.set_timesteps(4)
    x = ours.step(torch.ones(1, 1), ours.timesteps[0], torch.ones(1, 1)).prev_sample
    with pytest.raises(InputError, match="timestep 0, expected 500"):
        ours.step(torch.ones(1, 1), ours.timesteps[3], x)


def test_a_sample_of_another_shape_than_the_last_is_refused() -> None:
    ours, x = named("DDIM"), torch.ones(3, 1)
    ours.set_timesteps(4)
    out = ours.step(x, ours.timesteps[0], x).prev_sample
    with pytest.raises(InputError, match=r"sample \[1, 1\], expected \[3, 1\]"):
        ours.step(out[:1], ours.timesteps[1], x[:1])


def test_the_number_of_steps_is_a_whole_number_of_any_type() -> None:
    ours = named("DDIM")
    expected = times_of(ours, 5)
    for steps in (5.0, torch.tensor(5), np.int64(5)):
        assert times_of(ours, steps) == expected
    for steps in ("5", 0, 2.5, torch.ones(2), float("nan"), float("inf"), None, True, np.True_, torch.tensor(True)):
        with pytest.raises(InputError, match="num_inference_steps"):
            ours.set_timesteps(steps)


@pytest.mark.parametrize("length", [0, -3, 1, 1.5, True, "1000", float("nan"), float("inf")])
def test_the_number_of_trained_times_is_a_whole_number(length: Any) -> None:
    with pytest.raises(InputError, match=r"num_train_timesteps .*, expected a whole number of at least 2"):
        named("DDIM", num_train_timesteps=length)


def test_an_unknown_grid_is_told_what_there_is() -> None:
    ours = named("DDIM")
    ours = pfdiff.PFDiffScheduler.from_config(ours.config, grid="trailling")
    with pytest.raises(InputError, match=r"known: uniform, .*, or diffusers where .*; did you mean trailing\?"):
        ours.set_timesteps(4)


def test_other_schedulers_read_what_ours_saves(tmp_path: Path) -> None:
    named("DDIM", **LATENT).save_pretrained(tmp_path)
    theirs = diffusers.DPMSolverMultistepScheduler.from_pretrained(tmp_path)
    assert theirs.config["beta_start"] == LATENT["beta_start"]
    assert theirs.config["solver_order"] == 2
    theirs.set_timesteps(4)


def test_one_step_from_a_clean_time_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="time 0"):
        named("DDIM", timestep_spacing="leading").set_timesteps(1)
