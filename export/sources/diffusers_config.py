"""A diffusers scheduler's config -> `Convention`: our schedule, prediction, times and end.

`read_config(config)` takes the plain dictionary (scheduler_config.json, or `scheduler.config`) and needs no diffusers.
The keys that count are those of its class (scheduler_classes.py); what is not understood is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...engine.compiler.schedule import Discrete, Float64s, Flow, hold_alphas, parse_schedule
from ...engine.errors import InputError, first_line, shown
from ...engine.json_fields import is_number
from ..convention import Convention, shifted
from ..pipelines.scheduler_classes import CLASSES, REFUSED, SMALLEST_ALPHA, UNNAMED, SchedulerClass
from ..pipelines.stochastic_classes import STOCHASTIC

Values = Mapping[str, Any]

ALL = {**CLASSES, **STOCHASTIC}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
USUAL = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}  # of our schedules of the same names
REASONS = {
    "thresholding": "thresholds dynamically, which no table can; set thresholding=False, or clip=1",
    "invert_sigmas": "has invert_sigmas, for which there is no grid here; set it to False",
    "interpolation_type": "has interpolation_type {value}, for which there is no grid here; set it to linear",
    "stochastic_sampling": "has stochastic_sampling, which draws noise: set it to False, or give solver='lcm'",
    "algorithm_type": "has algorithm_type {value}, whose step is not here; set it to dpmsolver++ or sde-dpmsolver++",
    "scale_factors": "has scale_factors, which change the resolution between steps; set it to None",
    "tau_func": "has a tau_func, which no config can hold; give solver='sa:tau=...,low=...,high=...'",
    "s_noise": "has s_noise {value}, expected 1",
    "algorithm_type of sa": "has algorithm_type {value}, whose step is not here; set it to data_prediction",
    "prediction_type": "is of EDM with prediction_type {value}, expected epsilon, the raw F",
}


def read_config(config: Values, mu: float | None = None) -> Convention:
    """The convention of a scheduler's config. mu: of dynamic shifting, which needs it.

    Raises InputError for a class, a key or a value that is not understood: what draws noise, dynamic thresholding,
    processes other than VP, EDM and flow.
    """
    try:
        return _read(config, mu)
    except InputError:
        raise
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise InputError(
            f"a scheduler's config has a value of a wrong kind ({type(error).__name__}: {first_line(error)[:100]}); "
            "copy it again, or give schedule= and prediction="
        ) from None


def _read(config: Values, mu: float | None) -> Convention:
    kind = scheduler_class(config)
    values = {key: default if config.get(key) is None else config[key] for key, default in kind.read.items()}
    length = values.get("num_train_timesteps", 1000)
    if isinstance(length, bool) or not isinstance(length, (int, float)) or not (length >= 2 and length == length // 1):
        raise InputError(
            f"this scheduler has num_train_timesteps {shown(length)}, expected a whole number of at least 2"
        )
    for key, accepted in kind.only.items():
        value = config.get(key, accepted[0])
        if value not in accepted:
            reason = "algorithm_type of sa" if kind.solver == "sa" and key == "algorithm_type" else key
            raise InputError(f"this scheduler {REASONS[reason].format(value=shown(value))}")
    if kind.process == "edm":
        return _consistency(values, kind) if "clip_denoised" in values else _edm(values)
    if kind.process == "flow":
        return replace(_flow(values, kind, "flow", mu), solver=_own_solver(config, values, kind))
    if values.get("use_flow_sigmas"):
        prediction = _choice(values, "prediction_type", PREDICTIONS)
        if prediction == "v":
            raise InputError("this scheduler has prediction_type v_prediction with use_flow_sigmas; set one of them")
        flow = _flow({**values, "shift": values["flow_shift"]}, kind, prediction, mu)
        return replace(flow, solver=_own_solver(config, values, kind) if kind.draws else None)
    return replace(_discrete(values, kind), solver=_own_solver(config, values, kind))


def _own_solver(config: Values, values: Values, kind: SchedulerClass) -> str | None:
    """The solver of a class or a config whose step draws noise; None for all others. Raises InputError."""
    if kind.solver == "sa":
        return _sa_solver(values)
    if kind.draws:
        scaling = float(values.get("timestep_scaling", 10.0))
        return f"lcm:scaling={scaling!r}" if kind.solver == "lcm" and scaling != 10 else kind.solver
    if config.get("algorithm_type") != "sde-dpmsolver++":
        return None
    order, form = config.get("solver_order") or 2, config.get("solver_type") or "midpoint"
    if form != "midpoint" and order == 2:
        raise InputError(f"this scheduler has solver_type {form!r} of an SDE, which is not here; set it to midpoint")
    solvers = {1: "ddim:eta=1", 2: "dpm++:2m-sde", 3: "dpm++:3m-sde-diffusers"}
    if order not in solvers:
        raise InputError(f"this scheduler has solver_order {shown(order)}, expected 1, 2 or 3")
    return solvers[order]


def _sa_solver(values: Values) -> str:
    """diffusers' tau: 1 at its times 200 to 800, else 0."""
    unit = float(values["num_train_timesteps"]) if values["use_flow_sigmas"] else 1.0
    orders = f"predictor={values['predictor_order']},corrector={values['corrector_order']}"
    return f"sa:{orders},tau=1,low={200 / unit:g},high={800 / unit:g}"


def scheduler_class(config: Values) -> SchedulerClass:
    """How the config is read: by its class, or without one by what it holds. Raises InputError."""
    name = class_name(config)
    if name in ALL:
        return ALL[name]
    if name in REFUSED:
        raise InputError(f"{name} is not read: {REFUSED[name]}")
    if name is not None:
        known = ", ".join(one.removesuffix("Scheduler") for one in list(CLASSES)[:8]) + ", ..."
        raise InputError(f"scheduler class {shown(name)} is not known; give schedule= and prediction=. Known: {known}")
    if config.get("beta_schedule") is not None or config.get("trained_betas") is not None:
        if config.get("solver_order"):
            return CLASSES[f"{'DPMSolver' if config.get('predict_x0') is None else 'UniPC'}MultistepScheduler"]
        return UNNAMED["betas"]
    if config.get("sigma_data") is not None:
        return UNNAMED["edm"]
    if config.get("shift") is not None:
        return UNNAMED["flow"]
    raise InputError("this config has no _class_name, no betas, no shift and no sigma_data; not VP, flow or EDM")


def class_name(config: Values) -> str | None:
    """The class in the config; of a live scheduler's, which does not name it, the one whose parameters come first."""
    if config.get("_class_name") is not None:
        return str(config["_class_name"])
    keys = [key for key in config if not key.startswith("_")]
    found = [name for name, one in ALL.items() if one.parameters == {*keys[: len(one.parameters)]}]
    if "LCMScheduler" in found:
        raise InputError(
            "this config is of LCMScheduler or of TCDScheduler, which have the same keys and draw noise in their own "
            "ways; say which: {**config, '_class_name': 'LCMScheduler'}"
        )
    return found[0] if found else None


def convention_of(config: Values, mu: float | None) -> Convention:
    """What a PFDiffScheduler's config means: the former scheduler's, and our options in place of what they replace."""
    plain = {**config, "_class_name": config.get("scheduler_class")}
    processes = ("_class_name", "beta_schedule", "trained_betas", "shift", "sigma_data")
    own = {key: config[key] for key in ("schedule", "prediction", "clip", "end") if config.get(key) is not None}
    if "schedule" in own:
        kind = CLASSES.get(str(plain["_class_name"]))
        name = plain["_class_name"] if kind is not None and kind.process == "betas" else None
        plain |= {"_class_name": name, "beta_schedule": "linear", "use_flow_sigmas": False}
        plain |= {"trained_betas": None, "snr_shift_scale": 1.0}
    elif all(plain.get(key) is None for key in processes):
        plain["beta_schedule"] = "linear"
    convention = read_config(plain, mu)
    if "schedule" in own and not parse_schedule(own["schedule"]).discrete:
        own |= {"spacing": "rule", "grid": "uniform", "ramp": None}
    return replace(convention, **own)


def dynamic_mu(config: Values, tokens: int) -> float:
    """mu of dynamic shifting for a sample of `tokens` patches, as the pipelines of flow networks compute it."""
    low, high = (float(config.get(key) or value) for key, value in (("base_shift", 0.5), ("max_shift", 1.15)))
    first, last = (
        int(config.get(key) or value) for key, value in (("base_image_seq_len", 256), ("max_image_seq_len", 4096))
    )
    return low + (high - low) * (tokens - first) / (last - first)


# Processes of betas.
def _discrete(values: Values, kind: SchedulerClass) -> Convention:
    prediction = _choice(values, "prediction_type", PREDICTIONS)
    if prediction == "flow":
        raise InputError("this scheduler has prediction_type flow_prediction without use_flow_sigmas; set that too")
    if values.get("timestep_type") == "continuous" and prediction == "v":
        raise InputError("this scheduler has timestep_type continuous, for which there is no schedule here")
    terminal: float | None = None
    if values.get("rescale_betas_zero_snr"):
        terminal = SMALLEST_ALPHA if kind.terminal or values.get("final_sigmas_type") else 0.0
    first = values.get("set_alpha_to_one") is False or values.get("final_sigmas_type") == "sigma_min"
    schedule = _schedule(values, terminal)
    convention = Convention(
        schedule,
        prediction,
        "uniform",
        basis="v" if terminal == 0 else None,  # at alpha 0 neither eps nor x0 carries a step
        end="first" if first else kind.end,
        clip=float(values["clip_sample_range"]) if values.get("clip_sample") else None,
        keeps_eps=kind.keeps_eps,
        is_open=kind.is_open,
        length=_length(values, schedule),
    )
    if "original_inference_steps" in values:
        return replace(convention, spacing="distilled", length=None, origin=int(values["original_inference_steps"]))
    ramp = _ramp(values)
    spacing = values.get("timestep_spacing", "linspace")
    offset = int(values.get("steps_offset", 0))
    if not 0 <= offset < int(values["num_train_timesteps"]):
        raise InputError(f"this scheduler has steps_offset {shown(offset)}, expected 0 or more, below its time steps")
    grids = {"linspace": "uniform", "leading": f"leading:offset={offset}", "trailing": "trailing"}
    grid = _choice({"timestep_spacing": spacing}, "timestep_spacing", grids)
    is_open = kind.is_open and spacing != "trailing"
    convention = replace(convention, spacing=spacing, grid=grid, is_open=is_open, offset=offset)
    if ramp is None:
        return convention
    span = (values.get("sigma_min"), values.get("sigma_max"))
    grid = {"karras": "karras:rho=7", "exponential": "logsnr"}.get(ramp, grid)
    return replace(convention, grid=grid, ramp=ramp, ramp_of=kind.ramp_of, ramp_span=span)


def _length(values: Values, schedule: str) -> int | None:
    """How many times are in use: those whose lambda is above `lambda_min_clipped`; None for all."""
    least = float(values.get("lambda_min_clipped", -math.inf))
    if math.isinf(least):
        return None
    process = parse_schedule(schedule)
    return int(np.sum(process.lam(np.arange(process.last + 1)) >= least))


def _ramp(values: Values) -> str | None:
    """karras, exponential or beta; Lu's lambdas are evenly spaced like exponential sigmas."""
    if values.get("use_karras_sigmas"):
        return "karras"
    if values.get("use_exponential_sigmas") or values.get("use_lu_lambdas"):
        return "exponential"
    return "beta" if values.get("use_beta_sigmas") else None


def _schedule(values: Values, terminal: float | None) -> str:
    """The schedule's string: by name where one of ours has these betas, else by its numbers."""
    kind, length = values["beta_schedule"], int(values["num_train_timesteps"])
    shift = float(values.get("snr_shift_scale", 1.0))
    if values["trained_betas"] is not None or kind not in NAMES or shift != 1:
        return _held(values, kind, length, shift, terminal)
    name = NAMES[kind]
    options = {"beta_min": 0.0, "beta_max": 0.999}
    if name != "cosine":
        options = {"beta_min": values["beta_start"], "beta_max": values["beta_end"]}
        options = {} if tuple(options.values()) == USUAL[name] else options
    if terminal is not None:
        options["terminal"] = terminal
    query = "&".join(f"{key}={value!r}" for key, value in options.items())
    return f"{name}:{length}{'?' if query else ''}{query}"


def _held(values: Values, kind: str, length: int, shift: float, terminal: float | None) -> str:
    """A schedule of own numbers, float64: trained betas, betas without a name here, a shifted signal-to-noise ratio."""
    low, high = values["beta_start"], values["beta_end"]
    t = np.arange(length + 1) / length
    betas: Float64s
    if values["trained_betas"] is not None:
        betas = np.asarray(values["trained_betas"], np.float64)
    elif kind == "linear":
        betas = np.linspace(low, high, length)
    elif kind == "scaled_linear":
        betas = np.linspace(low**0.5, high**0.5, length) ** 2
    elif kind == "sigmoid":
        betas = (high - low) / (1 + np.exp(-np.linspace(-6, 6, length))) + low
    elif kind in ("exp", "squaredcos_cap_v2"):
        alphabar = np.exp(-12 * t) if kind == "exp" else np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - alphabar[1:] / alphabar[:-1], 0.999)
    else:
        known = ", ".join([*NAMES, "sigmoid", "exp"])
        raise InputError(f"beta_schedule {kind!r} has no meaning here; known: {known}")
    alphabar = np.cumprod(1 - betas)
    alphabar = alphabar / (shift + (1 - shift) * alphabar)
    if terminal is not None:  # arXiv 2305.08891, algorithm 1
        root = np.sqrt(alphabar)
        alphabar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        alphabar[-1] = min(terminal, alphabar[-2] / 2)
    return hold_alphas(Discrete(alphabar).alphas_cumprod)


# Flow and EDM.
def _flow(values: Values, kind: SchedulerClass, prediction: str, mu: float | None) -> Convention:
    shift, length = float(values["shift"]), int(values["num_train_timesteps"])
    dynamic = bool(values["use_dynamic_shifting"]) if "use_dynamic_shifting" in values else False
    if dynamic:
        if mu is None:
            raise InputError("this scheduler shifts its times by the image's size; give mu (see dynamic_mu)")
        shift = mu if values["time_shift_type"] == "linear" else math.exp(mu)
    shifts = ("linear" if values["time_shift_type"] == "linear" else "exponential") if dynamic else ""
    span: tuple[float, float] = (1.0, 1 / length)
    ramp, ramp_span, latest = _ramp(values), (None, None), 1.0
    if kind.process == "betas":
        # UniPC starts at 1, moved down to where lambda is finite; the DPM family starts one time lower.
        span, latest = (span, 1 - 1e-6) if "sigma_max" in values else ((1 - 1 / length, 0.0), latest)
        if ramp is not None:
            ramp_span = _flow_ramp(values, ramp)
    elif not dynamic:
        # FlowMatchEuler shifts its smallest sigma when it is made, and all of them once more.
        span = (1.0, float(shifted(np.array(1 / length), shift)))
    options = {} if shift == 1 else {"shift": shift}
    lowest = float(shifted(np.array(span[1]), shift))
    if 0 < lowest < Flow.t_min:
        options["t_min"] = lowest
    return Convention(
        schedule=":".join(filter(None, ("flow", "&".join(f"{key}={value!r}" for key, value in options.items())))),
        prediction=prediction,
        grid="uniform",
        time_scale=float(length),
        spacing="flow",
        is_open=kind.process == "betas",
        span=span,
        shift=shift,
        dynamic=shifts,
        shift_terminal=_terminal(values.get("shift_terminal")),
        latest=latest,
        ramp=ramp,
        ramp_span=ramp_span,
    )


def _terminal(value: Any) -> float | None:
    """The last sigma before the end, None where it is left alone. Raises InputError."""
    if value is not None and not (is_number(value) and 0 <= value < 1):
        raise InputError(
            f"this scheduler has shift_terminal {shown(value)}, expected a number from 0, below 1, or None"
        )
    return None if value is None else float(value)


def _flow_ramp(values: Values, ramp: str) -> tuple[float, float]:
    """The ends of UniPC's Karras sigmas, of sigma / alpha; the betas' own where the config does not say them."""
    if ramp != "karras" or "sigma_max" not in values:
        raise InputError(f"this scheduler has use_flow_sigmas with {ramp} sigmas, which fit no flow; set one to False")
    process = parse_schedule(_schedule(values, None))
    lowest, highest = np.exp(-process.lam([process.first, process.last])).tolist()
    low, high = values["sigma_min"], values["sigma_max"]
    return (lowest if low is None else float(low), highest if high is None else float(high))


def _consistency(values: Values, kind: SchedulerClass) -> Convention:
    """Consistency models: Karras sigmas at every so many of its times; the network is fed 250 ln(sigma)."""
    low, high = float(values["sigma_min"]), float(values["sigma_max"])
    if values["rho"] != 7:
        raise InputError(f"this scheduler has rho {values['rho']!r}, expected 7")
    return Convention(
        schedule=f"edm?sigma_min={low!r}&sigma_max={high!r}",
        prediction="consistency",
        grid="karras:rho=7.0",
        clip=1.0 if values["clip_denoised"] else None,
        time_scale=1000.0,
        sigma_data=float(values["sigma_data"]),
        spacing="consistency",
        length=int(values["num_train_timesteps"]),
        solver=kind.solver,
    )


def _edm(values: Values) -> Convention:
    low, high = float(values["sigma_min"]), float(values["sigma_max"])
    exponential = values["sigma_schedule"] == "exponential"
    return Convention(
        schedule=f"edm?sigma_min={low!r}&sigma_max={high!r}",
        prediction="edm",
        grid="logsnr" if exponential else f"karras:rho={float(values['rho'])!r}",
        end="first" if values["final_sigmas_type"] == "sigma_min" else "clean",
        sigma_data=float(values["sigma_data"]),
    )


def _choice(values: Values, key: str, known: Mapping[str, str]) -> str:
    if values[key] not in known:
        raise InputError(f"{key} {values[key]!r} has no meaning here; known: {', '.join(known)}")
    return known[values[key]]
