"""A diffusers scheduler's config -> `Convention`: our schedule, prediction, grid and end.

`read_config(config)` takes the plain dictionary (scheduler_config.json, or `scheduler.config`) and needs no diffusers.
The end is the clean point, or the first trained time where `set_alpha_to_one` is false or `final_sigmas_type` is
sigma_min.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...engine.compiler.schedule import Flow, parse_schedule
from ...engine.errors import InputError
from ..convention import Convention, shifted

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
SMALLEST_ALPHA = 2.0**-24  # what diffusers' sigma-based schedulers put in place of a terminal alphabar of 0

# What a class takes for a key that its config does not hold; older files hold few keys.
VP = {"beta_schedule": "linear"}
LATENT = {**VP, "beta_start": 0.00085, "beta_end": 0.012}
LEADING = {**VP, "timestep_spacing": "leading"}
CONSISTENCY = {**LATENT, "beta_schedule": "scaled_linear", "timestep_spacing": "leading", "set_alpha_to_one": True}
DDIM = {**LEADING, "set_alpha_to_one": True, "clip_sample": True}
ORDERED = {**VP, "solver_order": 2}
DEFAULTS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": DDIM,
    "DDIMParallelScheduler": DDIM,
    "DDPMScheduler": {**LEADING, "clip_sample": True},
    "DDPMParallelScheduler": {**LEADING, "clip_sample": True},
    "PNDMScheduler": {**LEADING, "set_alpha_to_one": False},
    "LCMScheduler": CONSISTENCY,
    "TCDScheduler": CONSISTENCY,
    "HeunDiscreteScheduler": LATENT,
    "KDPM2DiscreteScheduler": LATENT,
    "KDPM2AncestralDiscreteScheduler": LATENT,
    "EulerDiscreteScheduler": {**VP, "final_sigmas_type": "zero"},
    "EulerAncestralDiscreteScheduler": VP,
    "LMSDiscreteScheduler": VP,
    "DPMSolverMultistepScheduler": {**ORDERED, "final_sigmas_type": "zero"},
    "DPMSolverSinglestepScheduler": {**ORDERED, "final_sigmas_type": "zero"},
    "DEISMultistepScheduler": ORDERED,
    "UniPCMultistepScheduler": {**ORDERED, "final_sigmas_type": "zero", "predict_x0": True},
    "FlowMatchEulerDiscreteScheduler": {"shift": 1.0},
    "FlowMatchHeunDiscreteScheduler": {"shift": 1.0},
    "EDMEulerScheduler": {"sigma_data": 0.5, "final_sigmas_type": "zero"},
    "EDMDPMSolverMultistepScheduler": {"sigma_data": 0.5, "final_sigmas_type": "zero"},
}


def read_config(config: Mapping[str, Any], mu: float | None = None) -> Convention:
    """The convention of a scheduler's config. mu: of dynamic shifting, which needs it.

    Raises InputError for what is not a table of fixed coefficients or has no name here: dynamic thresholding, own
    betas, inverted sigmas, beta-distributed sigmas, processes other than VP, EDM and flow.
    """
    return _read(complete(config), mu)


def convention_of(config: Mapping[str, Any], mu: float | None) -> Convention:
    """What the config means, with our options in place of what they replace."""
    plain = dict(config)
    if plain["schedule"] is not None:
        plain |= {"trained_betas": None, "snr_shift_scale": None, "beta_schedule": "linear", "use_flow_sigmas": False}
    elif all(plain[key] is None for key in ("beta_schedule", "trained_betas", "shift", "sigma_data")):
        plain["beta_schedule"] = "linear"
    convention = read_config(plain, mu)
    changes = {key: plain[key] for key in ("schedule", "prediction", "clip", "end") if plain[key] is not None}
    if plain["schedule"] is not None and not parse_schedule(plain["schedule"]).discrete:
        changes |= {"spacing": "rule", "grid": "uniform"}
    return replace(convention, **changes)


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the keys that an old or hand-written file leaves to its class."""
    name = config.get("_class_name")
    return {**DEFAULTS.get(name, {}), **config} if isinstance(name, str) else dict(config)


def dynamic_mu(config: Mapping[str, Any], tokens: int) -> float:
    """mu of dynamic shifting for a sample of `tokens` patches, as the pipelines of flow networks compute it."""
    low, high = (float(config.get(key) or value) for key, value in (("base_shift", 0.5), ("max_shift", 1.15)))
    first, last = (
        int(config.get(key) or value) for key, value in (("base_image_seq_len", 256), ("max_image_seq_len", 4096))
    )
    return low + (high - low) * (tokens - first) / (last - first)


def _read(config: Mapping[str, Any], mu: float | None) -> Convention:
    get = config.get
    if get("thresholding"):
        raise InputError("this scheduler thresholds dynamically, which no table can; set thresholding=False, or clip=1")
    for key in ("invert_sigmas", "use_beta_sigmas"):
        if get(key):
            raise InputError(f"this scheduler has {key}, for which there is no grid here; set it to False")
    if get("beta_schedule") is None and get("trained_betas") is None:
        if get("sigma_data") is not None:
            return _edm(config)
        if get("shift") is not None:
            return _flow(config, float(get("shift") or 1), mu)
        raise InputError(
            f"{get('_class_name', 'this config')} has no betas, no shift and no sigma_data; not VP, flow or EDM"
        )
    if get("use_flow_sigmas") or get("prediction_type") == "flow_prediction":
        return _flow(config, float(get("flow_shift") or 1), mu)
    return _discrete(config)


def _discrete(config: Mapping[str, Any]) -> Convention:
    get = config.get
    terminal: float | None = None
    if get("rescale_betas_zero_snr"):
        terminal = SMALLEST_ALPHA if get("final_sigmas_type") or get("solver_order") else 0.0
    prediction = _choice(config, "prediction_type", "epsilon", PREDICTIONS)
    if get("timestep_type") == "continuous" and prediction == "v":
        raise InputError("this scheduler has timestep_type continuous, for which there is no schedule here")
    convention: dict[str, Any] = {
        "schedule": _betas(config, terminal),
        "prediction": prediction,
        "basis": "v" if terminal == 0 else None,  # at alpha 0 neither eps nor x0 carries a step
        "end": "first" if get("set_alpha_to_one") is False or get("final_sigmas_type") == "sigma_min" else "clean",
        "clip": float(get("clip_sample_range") or 1) if get("clip_sample") else None,
    }
    if get("use_karras_sigmas"):
        return Convention(**convention, grid="karras:rho=7")
    if get("use_exponential_sigmas") or get("use_lu_lambdas"):
        return Convention(**convention, grid="logsnr")
    offset = int(get("steps_offset") or 0)
    grids = {"linspace": "uniform", "leading": f"leading:offset={offset}", "trailing": "trailing"}
    spacing = get("timestep_spacing") or "linspace"
    is_open = bool(get("solver_order")) and spacing != "trailing"
    grid = _choice(config, "timestep_spacing", "linspace", grids)
    return Convention(**convention, grid=grid, spacing=spacing, is_open=is_open, offset=offset)


def _betas(config: Mapping[str, Any], terminal: float | None) -> str:
    if config.get("trained_betas") is not None:
        raise InputError("this scheduler has its own betas; write them to a file and give schedule='alphas:FILE'")
    if (config.get("snr_shift_scale") or 1) != 1:
        raise InputError("this scheduler has snr_shift_scale; write its alphas_cumprod, give schedule='alphas:FILE'")
    names = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
    name = _choice(config, "beta_schedule", "linear", names)
    options = {"beta_min": 0.0, "beta_max": 0.999}
    if name != "cosine":
        options = {"beta_min": config.get("beta_start") or 1e-4, "beta_max": config.get("beta_end") or 0.02}
        usual = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}[name]
        options = {} if tuple(options.values()) == usual else options
    if terminal is not None:
        options["terminal"] = terminal
    query = "&".join(f"{key}={value!r}" for key, value in options.items())
    return f"{name}:{int(config.get('num_train_timesteps') or 1000)}{'?' if query else ''}{query}"


def _flow(config: Mapping[str, Any], shift: float, mu: float | None) -> Convention:
    get = config.get
    dynamic = bool(get("use_dynamic_shifting"))
    if dynamic:
        if mu is None:
            raise InputError("this scheduler shifts its times by the image's size; give mu (see dynamic_mu)")
        shift = mu if get("time_shift_type") == "linear" else math.exp(mu)
    length = int(get("num_train_timesteps") or 1000)
    span: tuple[float, float] = (1.0, 1 / length)
    is_open = False
    if get("solver_order"):
        is_open = True
        if not get("predict_x0"):  # UniPC starts at 1, the DPM family one time lower
            span = (1 - 1 / length, 0.0)
    elif not dynamic:
        # FlowMatchEuler shifts its smallest sigma when it is made, and all of them once more.
        span = (1.0, float(shifted(np.array(1 / length), shift)))
    options = {} if shift == 1 else {"shift": shift}
    lowest = float(shifted(np.array(span[1]), shift))
    if 0 < lowest < Flow.t_min:
        options["t_min"] = lowest
    return Convention(
        schedule=":".join(filter(None, ("flow", "&".join(f"{key}={value!r}" for key, value in options.items())))),
        prediction="flow",
        grid="uniform",
        time_scale=float(length),
        spacing="flow",
        is_open=is_open,
        span=span,
        shift=shift,
        shift_terminal=get("shift_terminal"),
        ramp="karras" if get("use_karras_sigmas") else "exponential" if get("use_exponential_sigmas") else None,
    )


def _edm(config: Mapping[str, Any]) -> Convention:
    get = config.get
    if get("prediction_type") not in (None, "epsilon"):
        raise InputError(f"EDM scheduler with prediction_type {get('prediction_type')!r}, expected epsilon, the raw F")
    low, high = (float(get(key) or value) for key, value in (("sigma_min", 0.002), ("sigma_max", 80.0)))
    return Convention(
        schedule=f"edm?sigma_min={low!r}&sigma_max={high!r}",
        prediction="edm",
        grid="logsnr" if get("sigma_schedule") == "exponential" else f"karras:rho={float(get('rho') or 7)!r}",
        end="first" if get("final_sigmas_type") == "sigma_min" else "clean",
        sigma_data=float(get("sigma_data") or 0.5),
    )


def _choice(config: Mapping[str, Any], key: str, default: str, known: Mapping[str, str]) -> str:
    value = config.get(key) or default
    if value not in known:
        raise InputError(f"{key} {value!r} has no meaning here; known: {', '.join(known)}")
    return known[value]
