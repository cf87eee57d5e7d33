"""Which keys of its config each diffusers scheduler class honours, with the value it takes for a key that is not there.

Files are copied from class to class, so that a config holds keys of others: only those of its class count. A class is
either in `CLASSES`, read as a schedule and as the times of its rule, or in `REFUSED` with the reason. Every parameter
of a class in `CLASSES` is

    read       it says something of schedule, prediction, times, end or clip
    only       it is refused at any other value than these
    its step   it belongs to the class's own solver, which ours takes the place of

(diffusers 0.42; docs/reference/diffusers-schedulers.md is made of this file.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final


@final
@dataclass(frozen=True)
class SchedulerClass:
    """How a class's config is read.

    process     betas (alphabar of discrete times), flow or edm
    read        the keys that are read, each with the class's default
    only        by key, the values that are accepted
    step        keys of the class's own step
    is_open     the last point of linspace and leading is dropped: N + 1 points, of which N are evaluated
    end         clean or first where no key says it
    terminal    alphabar at the last time after `rescale_betas_zero_snr`
    ramp_of     what karras, exponential and beta sigmas span: the spaced times, or all trained ones
    keeps_eps   its step clips x0 and takes the network's eps as it is
    solver      ours that takes the same step; "" where none does
    draws       its step draws noise: `solver` is the default, on its own times (stochastic_classes.py)
    """

    process: Literal["betas", "flow", "edm"]
    read: Mapping[str, Any]
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    step: tuple[str, ...] = ()
    is_open: bool = False
    end: Literal["clean", "first"] = "clean"
    terminal: float = 0.0
    ramp_of: Literal["spaced", "all"] = "spaced"
    keeps_eps: bool = False
    solver: str = "ddim"
    draws: bool = False

    @property
    def parameters(self) -> set[str]:
        """All that the class's constructor takes."""
        return {*self.read, *self.only, *self.step}


SMALLEST_ALPHA = 2.0**-24  # what diffusers' sigma-based schedulers put in place of a terminal alphabar of 0
LENGTH = {"num_train_timesteps": 1000}
BETAS = {**LENGTH, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "trained_betas": None}
NARROW = {**BETAS, "beta_start": 0.00085, "beta_end": 0.012}
EPSILON = {"prediction_type": "epsilon"}
SPACED = {"timestep_spacing": "linspace", "steps_offset": 0}
LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
CLIPPED = {"clip_sample": True, "clip_sample_range": 1.0}
RAMPS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
DYNAMIC = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
FLOW_SIGMAS = {"use_flow_sigmas": False, "flow_shift": 1.0, **DYNAMIC}
ZERO = {"final_sigmas_type": "zero"}
NO = (False, None)
PLAIN = {"thresholding": NO}
THRESHOLD = ("dynamic_thresholding_ratio", "sample_max_value")
ORDER = ("solver_order", "solver_type", "lower_order_final")

DDIM = SchedulerClass(
    "betas",
    {**BETAS, **EPSILON, **LEADING, **CLIPPED, "set_alpha_to_one": True, "rescale_betas_zero_snr": False},
    only=PLAIN,
    step=THRESHOLD,
    keeps_eps=True,
)
DDPM = SchedulerClass(
    "betas",
    {**BETAS, **EPSILON, **LEADING, **CLIPPED, "rescale_betas_zero_snr": False},
    only=PLAIN,
    step=(*THRESHOLD, "variance_type"),
    solver="",
)
CLASSES: dict[str, SchedulerClass] = {
    "DDIMScheduler": DDIM,
    "DDIMParallelScheduler": DDIM,
    "DDPMScheduler": DDPM,
    "DDPMParallelScheduler": DDPM,
    "CogVideoXDDIMScheduler": SchedulerClass(
        "betas",
        {
            **NARROW,
            "beta_schedule": "scaled_linear",
            **EPSILON,
            **LEADING,
            "set_alpha_to_one": True,
            "rescale_betas_zero_snr": False,
            "snr_shift_scale": 3.0,
        },
        step=("clip_sample", "clip_sample_range", "sample_max_value"),
    ),
    "PNDMScheduler": SchedulerClass(
        "betas", {**BETAS, **EPSILON, **LEADING, "set_alpha_to_one": False}, step=("skip_prk_steps",), solver=""
    ),
    "EulerDiscreteScheduler": SchedulerClass(
        "betas",
        {
            **BETAS,
            **EPSILON,
            **SPACED,
            **RAMPS,
            **ZERO,
            "sigma_min": None,
            "sigma_max": None,
            "timestep_type": "discrete",
            "rescale_betas_zero_snr": False,
        },
        only={"interpolation_type": ("linear",)},
        terminal=SMALLEST_ALPHA,
    ),
    "HeunDiscreteScheduler": SchedulerClass(
        "betas",
        {**NARROW, **EPSILON, **SPACED, **RAMPS, **CLIPPED, "clip_sample": False},
        solver="edm",
    ),
    "KDPM2DiscreteScheduler": SchedulerClass("betas", {**NARROW, **EPSILON, **SPACED, **RAMPS}, solver=""),
    "LMSDiscreteScheduler": SchedulerClass(
        "betas",
        {**BETAS, **EPSILON, **SPACED, **RAMPS},
        solver="deis:order=4,variant=rho",
    ),
    "DPMSolverMultistepScheduler": SchedulerClass(
        "betas",
        {
            **BETAS,
            **EPSILON,
            **SPACED,
            **RAMPS,
            **FLOW_SIGMAS,
            **ZERO,
            "use_lu_lambdas": False,
            "lambda_min_clipped": -float("inf"),
            "rescale_betas_zero_snr": False,
        },
        only={**PLAIN, "algorithm_type": ("dpmsolver++", "dpmsolver", "deis", "sde-dpmsolver++")},
        step=(*THRESHOLD, *ORDER, "euler_at_final", "variance_type"),
        is_open=True,
        terminal=SMALLEST_ALPHA,
        ramp_of="all",
        solver="dpm++:2m",
    ),
    "DPMSolverSinglestepScheduler": SchedulerClass(
        "betas",
        {**BETAS, **EPSILON, **RAMPS, **FLOW_SIGMAS, **ZERO, "lambda_min_clipped": -float("inf")},
        only={**PLAIN, "algorithm_type": ("dpmsolver++", "dpmsolver", "deis")},
        step=(*THRESHOLD, *ORDER, "variance_type"),
        is_open=True,
        ramp_of="all",
        solver="",
    ),
    "DEISMultistepScheduler": SchedulerClass(
        "betas",
        {**BETAS, **EPSILON, **SPACED, **RAMPS, **FLOW_SIGMAS},
        only=PLAIN,
        step=(*THRESHOLD, *ORDER, "algorithm_type"),
        is_open=True,
        end="first",
        ramp_of="all",
        solver="deis:order=2,variant=lambda",
    ),
    "UniPCMultistepScheduler": SchedulerClass(
        "betas",
        {
            **BETAS,
            **EPSILON,
            **SPACED,
            **RAMPS,
            **FLOW_SIGMAS,
            **ZERO,
            "sigma_min": None,
            "sigma_max": None,
            "shift_terminal": None,
            "rescale_betas_zero_snr": False,
        },
        only=PLAIN,
        step=(*THRESHOLD, *ORDER, "predict_x0", "disable_corrector", "solver_p"),
        is_open=True,
        terminal=SMALLEST_ALPHA,
        ramp_of="all",
        solver="unipc:order=2",
    ),
    "FlowMatchEulerDiscreteScheduler": SchedulerClass(
        "flow",
        {
            **LENGTH,
            "shift": 1.0,
            **DYNAMIC,
            **RAMPS,
            "shift_terminal": None,
            "base_shift": 0.5,
            "max_shift": 1.15,
            "base_image_seq_len": 256,
            "max_image_seq_len": 4096,
        },
        only={"invert_sigmas": NO, "stochastic_sampling": NO},
    ),
    "FlowMatchHeunDiscreteScheduler": SchedulerClass("flow", {**LENGTH, "shift": 1.0}, solver="edm"),
    "EDMEulerScheduler": SchedulerClass(
        "edm",
        {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras", "rho": 7.0, **ZERO},
        only={"prediction_type": ("epsilon", None)},
        step=("num_train_timesteps",),
    ),
    "EDMDPMSolverMultistepScheduler": SchedulerClass(
        "edm",
        {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras", "rho": 7.0, **ZERO},
        only={"prediction_type": ("epsilon", None), **PLAIN, "algorithm_type": ("dpmsolver++", "deis")},
        step=("num_train_timesteps", *THRESHOLD, *ORDER, "euler_at_final"),
        solver="dpm++:2m",
    ),
}

# Configs that name no class are read by what they hold.
UNNAMED: dict[str, SchedulerClass] = {
    "betas": SchedulerClass(
        "betas",
        {
            **BETAS,
            **EPSILON,
            **SPACED,
            **RAMPS,
            **FLOW_SIGMAS,
            **CLIPPED,
            "clip_sample": False,
            "set_alpha_to_one": None,
            "final_sigmas_type": None,
            "rescale_betas_zero_snr": False,
            "snr_shift_scale": 1.0,
            "sigma_min": None,
            "sigma_max": None,
            "timestep_type": "discrete",
            "use_lu_lambdas": False,
            "lambda_min_clipped": -float("inf"),
            "shift_terminal": None,
        },
        only={**PLAIN, "invert_sigmas": NO},
    ),
    "flow": CLASSES["FlowMatchEulerDiscreteScheduler"],
    "edm": CLASSES["EDMEulerScheduler"],
}

NOISY = "its step draws noise in a way that is not read from its config; {}"
EULER = "use EulerDiscreteScheduler.from_config(...), which has the same times and draws none"
NO_IMAGES = "it does not sample by noise that is added to numbers"
OWN = "its network is trained for its own step; {}"
SAY = "give schedule= and prediction= to sample its network by another solver"
REFUSED: dict[str, str] = {
    "KDPM2AncestralDiscreteScheduler": NOISY.format(EULER),
    "CosineDPMSolverMultistepScheduler": NOISY.format(SAY),
    "CogVideoXDPMScheduler": NOISY.format("use CogVideoXDDIMScheduler.from_config(...), which draws none"),
    "LTXEulerAncestralRFScheduler": NOISY.format("use FlowMatchEulerDiscreteScheduler, which draws none"),
    "RePaintScheduler": NOISY.format("use DDIMScheduler.from_config(...), which draws none"),
    "UnCLIPScheduler": NOISY.format(SAY),
    "DDPMWuerstchenScheduler": NOISY.format(SAY),
    "ScoreSdeVeScheduler": NOISY.format(SAY),
    "ScoreSdeVpScheduler": NOISY.format("give schedule='vp' and prediction='eps'"),
    "KarrasVeScheduler": NOISY.format(SAY),
    "ConsistencyDecoderScheduler": OWN.format("its two times are its own"),
    "SCMScheduler": OWN.format("trigflow is no schedule here"),
    "FlowMapEulerDiscreteScheduler": OWN.format("it is asked for two times at once"),
    "PiflowScheduler": OWN.format("its network predicts a policy, not a velocity"),
    "HeliosScheduler": OWN.format("it changes the resolution between its stages"),
    "HeliosDMDScheduler": OWN.format("it changes the resolution between its stages"),
    "MiniMaxH3Scheduler": OWN.format("it has steps of its own"),
    "RFD4ProteinaScheduler": OWN.format("it has steps of its own"),
    "IPNDMScheduler": "its times are angles of a schedule that is not here; give schedule='alphas:FILE'",
    "DDIMInverseScheduler": "it runs from data to noise; give the scheduler that it was made from",
    "DPMSolverMultistepInverseScheduler": "it runs from data to noise; give the scheduler that it was made from",
    "VQDiffusionScheduler": NO_IMAGES,
    "AmusedScheduler": NO_IMAGES,
    "BlockRefinementScheduler": NO_IMAGES,
    "DiscreteDDIMScheduler": NO_IMAGES,
    "EntropyBoundScheduler": NO_IMAGES,
}
