"""A diffusers config read by `read_config` against the scheduler that wrote it: times, alphas, ends, defaults."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from pfdiff.engine.compiler.compile import compile
from pfdiff.engine.compiler.grid import make_grid
from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.engine.errors import BackendError, InputError
from pfdiff.export.convention import Convention
from pfdiff.export.sources.diffusers_config import dynamic_mu, read_config

# diffusers turns tensors into NumPy 2 arrays in a way that PyTorch does not know yet.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

STABLE_DIFFUSION = {  # scheduler_config.json as Stable Diffusion 1 ships it
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


def evaluated(convention: Convention, count: int, **given: Any) -> np.ndarray:
    """The network's times for diffusers, without the end."""
    points = convention.points(count, **given)
    assert points is not None
    return np.array(points[:-1]) * convention.time_scale


def test_stable_diffusion_file() -> None:
    convention = read_config(STABLE_DIFFUSION)
    assert convention.schedule == "scaled_linear:1000"
    assert (convention.prediction, convention.end, convention.clip) == ("eps", "first", None)
    assert convention.grid == "leading:offset=1"
    assert convention.points(5) == (801, 601, 401, 201, 1, 0)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("count", [1, 4, 7, 50])
def test_the_named_grid_is_the_exact_one(spacing: str, offset: int, count: int) -> None:
    convention = read_config({"beta_schedule": "linear", "timestep_spacing": spacing, "steps_offset": offset})
    ours = make_grid(convention.grid, parse_schedule(convention.schedule), count)
    assert convention.points(count) == tuple(ours)


def test_more_points_than_given_times_follow_the_line_through_them() -> None:
    flow = read_config({"shift": 1.0})
    points = flow.points(10, sigmas=np.linspace(1, 1 / 4, 4).tolist())
    assert points is not None
    np.testing.assert_allclose(points, np.linspace(1, 0, 11), atol=1e-15)
    discrete = read_config(STABLE_DIFFUSION)
    assert discrete.points(3, times=[900, 600, 300]) == (900, 600, 300, 0)
    assert discrete.points(6, times=[900, 600, 300]) == (900, 750, 600, 450, 300, 150, 0)


def test_sigmas_of_a_discrete_schedule_become_its_nearest_times() -> None:
    sigmas = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.0]  # arXiv 2404.14507, SDXL
    expected = [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]
    points = read_config({**STABLE_DIFFUSION, "set_alpha_to_one": True}).points(10, sigmas=sigmas)
    assert points is not None
    assert np.abs(np.array(points[:-1]) - expected).max() <= 1
    assert points[-1] == -1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"beta_schedule": "linear", "thresholding": True}, "thresholds dynamically"),
        ({"beta_schedule": "laplace"}, "beta_schedule 'laplace'"),
        ({"beta_schedule": "linear", "prediction_type": "trigflow"}, "prediction_type 'trigflow'"),
        ({"beta_schedule": "linear", "timestep_spacing": "even"}, "timestep_spacing 'even'"),
        (
            {"beta_schedule": "linear", "timestep_type": "continuous", "prediction_type": "v_prediction"},
            "timestep_type continuous",
        ),
        ({"_class_name": "ScoreSdeVeScheduler", "snr": 0.15}, "ScoreSdeVeScheduler is not read: its step draws noise"),
        ({"shift": 1.0, "invert_sigmas": True}, "invert_sigmas"),
        ({"shift": 1.0, "use_dynamic_shifting": True}, "give mu"),
        ({"shift": 1.0, "shift_terminal": "low"}, "shift_terminal 'low', expected"),
        ({"_class_name": "DDIMScheduler", "steps_offset": 10**400}, "steps_offset .*, expected 0 or more"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "solver_order": 4},
            "solver_order 4, expected 1, 2 or 3",
        ),
        ({"sigma_data": 0.5, "prediction_type": "v_prediction"}, "expected epsilon"),
    ],
)
def test_what_no_table_can_do_is_refused_in_one_line(config: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read_config(config)
    assert "\n" not in str(caught.value)


def test_too_many_steps_are_refused() -> None:
    with pytest.raises(InputError, match="do not fall"):
        read_config({"beta_schedule": "linear", "num_train_timesteps": 10}).points(11)


def test_zero_terminal_snr_compiles_in_the_velocity_basis() -> None:
    config = {
        **STABLE_DIFFUSION,
        "_class_name": "DDIMScheduler",
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
    }
    convention = read_config({**config, "timestep_spacing": "trailing"})
    assert (convention.schedule, convention.basis) == ("scaled_linear:1000?terminal=0.0", "v")
    grid = convention.points(4)
    assert grid is not None
    program = compile("ddim", convention.schedule, 4, grid, "v", "v")
    assert parse_schedule(convention.schedule).alpha(999) == 0
    assert np.isfinite(program.table).all()


@pytest.mark.parametrize("name", ["EulerDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep"])
def test_a_key_that_the_class_does_not_have_says_nothing(name: str) -> None:
    """The published file of SDXL: EulerDiscreteScheduler, with a key of DDIM's."""
    file = {**STABLE_DIFFUSION, "_class_name": f"{name}Scheduler", "clip_sample": True, "timestep_spacing": "trailing"}
    convention = read_config(file)
    assert convention.end == "clean"
    assert convention.clip is None


def test_times_of_too_small_a_lambda_are_left_out() -> None:
    config = {"_class_name": "DPMSolverMultistepScheduler", "beta_schedule": "squaredcos_cap_v2"}
    assert read_config({**config, "lambda_min_clipped": -5.1}).points(4) == (995, 746, 498, 249, -1)


def test_the_scheduler_of_a_consistency_decoder_is_refused() -> None:
    with pytest.raises(InputError, match="ConsistencyDecoderScheduler is not read"):
        read_config({"_class_name": "ConsistencyDecoderScheduler", "sigma_data": 0.5})


def test_own_betas_become_a_schedule_of_their_numbers() -> None:
    betas = np.linspace(1e-4, 0.03, 50)
    process = parse_schedule(read_config({"trained_betas": betas.tolist()}).schedule)
    np.testing.assert_allclose(process.alpha(np.arange(50)) ** 2, np.cumprod(1 - betas), rtol=1e-14)


# Against diffusers itself.
def scheduler(name: str, **options: Any) -> Any:
    diffusers = pytest.importorskip("diffusers")
    return getattr(diffusers, name)(**options)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "DDPMScheduler",
        "EulerDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
    ],
)
def test_times_are_those_of_the_scheduler(name: str, spacing: str, offset: int) -> None:
    theirs = scheduler(name, timestep_spacing=spacing, steps_offset=offset)
    convention = read_config(theirs.config)
    for count in (1, 2, 5, 7, 20, 50):
        if (
            count == 1
            and spacing == "linspace"
            and name in ("DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler")
        ):
            continue  # there the only time is 0, the noise taken for clean
        theirs.set_timesteps(count)
        np.testing.assert_array_equal(evaluated(convention, count), np.round(theirs.timesteps.numpy()))


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_alphas_are_those_of_the_scheduler(name: str, betas: str, rescaled: bool) -> None:
    theirs = scheduler(name, beta_schedule=betas, beta_start=0.001, beta_end=0.015, rescale_betas_zero_snr=rescaled)
    process = parse_schedule(read_config(theirs.config).schedule)
    ours = process.alpha(np.arange(1000)) ** 2
    np.testing.assert_allclose(ours, theirs.alphas_cumprod.double().numpy(), rtol=3e-4, atol=3e-7)  # float32 products


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("terminal", [None, 0.1])
@pytest.mark.parametrize("ramp", ["", "use_karras_sigmas", "use_exponential_sigmas"])
def test_flow_times_are_those_of_the_scheduler(shift: float, terminal: float | None, ramp: str) -> None:
    options = {ramp: True} if ramp else {}
    theirs = scheduler("FlowMatchEulerDiscreteScheduler", shift=shift, shift_terminal=terminal, **options)
    convention = read_config(theirs.config)
    for count in (2, 4, 9):
        theirs.set_timesteps(count)
        np.testing.assert_allclose(evaluated(convention, count), theirs.timesteps.numpy(), rtol=2e-5)
        sigmas = np.linspace(1, 1 / count, count).tolist()
        theirs.set_timesteps(sigmas=sigmas)
        np.testing.assert_allclose(evaluated(convention, count, sigmas=sigmas), theirs.timesteps.numpy(), rtol=2e-5)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_dynamic_shifting(kind: str) -> None:
    theirs = scheduler("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True, time_shift_type=kind)
    mu = dynamic_mu(theirs.config, 1024)
    assert mu == pytest.approx(0.63)
    theirs.set_timesteps(5, mu=mu)
    np.testing.assert_allclose(evaluated(read_config(theirs.config, mu), 5), theirs.timesteps.numpy(), rtol=1e-5)


def test_unipc_flow_times() -> None:
    options = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    theirs = scheduler("UniPCMultistepScheduler", **options)
    theirs.set_timesteps(6)
    convention = read_config(theirs.config)
    assert convention.prediction == "flow"
    assert np.abs(evaluated(convention, 6) - theirs.timesteps.numpy()).max() <= 1  # theirs are cut to integers


@pytest.mark.parametrize("kind", ["karras", "exponential"])
def test_edm_sigmas(kind: str) -> None:
    theirs = scheduler("EDMEulerScheduler", sigma_max=50.0, sigma_schedule=kind)
    theirs.set_timesteps(6)
    convention = read_config(theirs.config)
    program = compile("ddim", convention.schedule, 6, convention.grid, prediction="edm", sigma_data=0.5)
    np.testing.assert_allclose(program.times, theirs.sigmas.numpy()[:-1], rtol=1e-5)
    np.testing.assert_allclose(program.network_times, theirs.timesteps.numpy(), rtol=1e-5, atol=1e-6)


# Beta sigmas, as Chroma1-HD has them.
def test_beta_sigmas_are_quantiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """At sigma of a point between the ends, Beta(0.6, 0.6) has the mass that is left: the integral by itself."""
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0, "use_beta_sigmas": True}
    points = read_config(config).points(5)
    assert points is not None
    assert (points[0], points[-1]) == (1.0, 0.0)
    high, low = points[0], points[4]
    assert low == pytest.approx(1e-3)
    # x = sin(u)^2 takes the poles out of the density x^-0.4 (1 - x)^-0.4.
    angles = np.arcsin(np.sqrt((np.array(points[:5]) - low) / (high - low)))
    u = np.linspace(0, np.pi / 2, 200_001)
    mass = np.cumsum((np.sin(u) * np.cos(u)) ** 0.2)
    np.testing.assert_allclose(np.interp(angles, u, mass / mass[-1]), [1, 0.75, 0.5, 0.25, 0], atol=1e-4)
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(BackendError, match=r"a scheduler with use_beta_sigmas needs scipy .*; pip install scipy"):
        read_config(config).points(5)
