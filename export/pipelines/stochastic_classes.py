"""The diffusers scheduler classes whose step draws noise: read as scheduler_classes.py reads the others.

`solver` is their own step, and the default for their networks: those of LCM, TCD and consistency models are trained for
no other, and distilled networks such as SD Turbo are published with Euler's ancestral step.
"""

from __future__ import annotations

from .scheduler_classes import (
    BETAS,
    CLASSES,
    EPSILON,
    LEADING,
    NARROW,
    NO,
    PLAIN,
    RAMPS,
    SMALLEST_ALPHA,
    SPACED,
    THRESHOLD,
    SchedulerClass,
)

DISTILLED = SchedulerClass(
    "betas",
    {
        **NARROW,
        "beta_schedule": "scaled_linear",
        **EPSILON,
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "rescale_betas_zero_snr": False,
        "original_inference_steps": 50,
        "timestep_scaling": 10.0,
    },
    only=PLAIN,
    step=(*THRESHOLD, "set_alpha_to_one", *LEADING),  # neither the end nor the spacing is read by its steps
    solver="lcm",
    draws=True,
)
FLOW_EULER = CLASSES["FlowMatchEulerDiscreteScheduler"]
STOCHASTIC: dict[str, SchedulerClass] = {
    "EulerAncestralDiscreteScheduler": SchedulerClass(
        "betas",
        {**BETAS, **EPSILON, **SPACED, "rescale_betas_zero_snr": False},
        terminal=SMALLEST_ALPHA,
        solver="euler-a",
        draws=True,
    ),
    "LCMScheduler": DISTILLED,
    "TCDScheduler": SchedulerClass(
        "betas", DISTILLED.read, only=PLAIN, step=DISTILLED.step, end="first", solver="tcd:gamma=0.3", draws=True
    ),
    "FlowMatchLCMScheduler": SchedulerClass(
        "flow",
        FLOW_EULER.read,
        only={"invert_sigmas": NO, "scale_factors": (None,)},
        step=("upscale_mode",),
        solver="lcm",
        draws=True,
    ),
    "SASolverScheduler": SchedulerClass(
        "betas",
        {
            **BETAS,
            **EPSILON,
            **SPACED,
            **RAMPS,
            "use_flow_sigmas": False,
            "flow_shift": 1.0,
            "lambda_min_clipped": -float("inf"),
            "predictor_order": 2,
            "corrector_order": 2,
        },
        only={**PLAIN, "algorithm_type": ("data_prediction",), "tau_func": (None,)},
        step=(*THRESHOLD, "lower_order_final", "variance_type"),
        is_open=True,
        end="first",
        ramp_of="all",
        solver="sa",
        draws=True,
    ),
    "DPMSolverSDEScheduler": SchedulerClass(
        "betas",
        {**NARROW, **EPSILON, **SPACED, **RAMPS},
        step=("noise_sampler_seed",),
        solver="dpm++:sde",
        draws=True,
    ),
    "CMStochasticIterativeScheduler": SchedulerClass(
        "edm",
        {
            "num_train_timesteps": 40,
            "sigma_min": 0.002,
            "sigma_max": 80.0,
            "sigma_data": 0.5,
            "rho": 7.0,
            "clip_denoised": True,
        },
        only={"s_noise": (1.0,)},
        solver="consistency",
        draws=True,
    ),
}
