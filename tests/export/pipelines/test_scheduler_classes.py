"""Every scheduler class of the installed diffusers against our reading of it: keys, times, and samples of its own loop.

diffusers computes in float32; here its modules see a `torch` and a `numpy` whose float32 is float64, so that its own
code runs in float64 and is compared to 1e-5 of the largest value, at 1, 2, 4, 8 and 20 steps.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pfdiff.engine.compiler.compile import compile
from pfdiff.engine.compiler.grid import make_grid
from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.engine.compiler.solvers import parse_solver
from pfdiff.engine.errors import InputError
from pfdiff.export.convention import Convention
from pfdiff.export.pipelines.scheduler_classes import CLASSES, REFUSED, SchedulerClass
from pfdiff.export.pipelines.stochastic_classes import STOCHASTIC
from pfdiff.export.sources.diffusers_config import read_config

diffusers = pytest.importorskip("diffusers")
# diffusers turns tensors into NumPy 2 arrays in a way that PyTorch does not know yet.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning"),
]

ROOT = Path(__file__).parents[3]
STEPS = (1, 2, 4, 8, 20)
MU = 0.8
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SQUARED = {"beta_schedule": "squaredcos_cap_v2"}
SHAPE = (2, 3, 1, 2)  # UniPC's own code wants axes behind the channels
IN_SIGMA = ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler")


def over(**options: list[Any]) -> list[dict[str, Any]]:
    """All combinations."""
    return [dict(zip(options, values, strict=True)) for values in product(*options.values())]


SPACINGS = [
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "leading", "steps_offset": 0},
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "trailing"},
]
PREDICTIONS = [{"prediction_type": kind} for kind in ("epsilon", "v_prediction", "sample")]
RAMPS = [{"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}]
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
RESCALED = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
BETAS = [LATENT, SQUARED, {"trained_betas": np.linspace(2e-4, 0.03, 1000).tolist()}]

DDIM = [
    *({**one, **LATENT, "clip_sample": False} for one in SPACINGS),
    *({**one, **LATENT, "clip_sample": False} for one in PREDICTIONS),
    *({**one, "set_alpha_to_one": False, "clip_sample": False} for one in SPACINGS),
    *({**one, "clip_sample": False} for one in BETAS),
    {**RESCALED, "clip_sample": False},
    {"clip_sample": True, "clip_sample_range": 0.8},
]
SIGMAS = [
    *({**one, **LATENT} for one in SPACINGS),
    *({**one, **LATENT, "timestep_spacing": "trailing"} for one in PREDICTIONS[:2]),
    *({**ramp, **one, **LATENT} for ramp, one in product(RAMPS, SPACINGS)),
    *BETAS,
]
MULTISTEP = [
    *({**one, **LATENT} for one in SPACINGS),
    *({**one, **LATENT, "timestep_spacing": "trailing"} for one in PREDICTIONS),
    *({**ramp, **LATENT} for ramp in RAMPS),
    {**LATENT, "solver_order": 1},
    {**LATENT, "solver_order": 3, "timestep_spacing": "trailing"},
    FLOW,
    *BETAS,
]
ENDS = [{**one, **LATENT, "final_sigmas_type": "sigma_min"} for one in SPACINGS]
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "DDIMScheduler": DDIM,
    "DDIMParallelScheduler": DDIM,
    "DDPMScheduler": [*SPACINGS, {"beta_schedule": "sigmoid"}, {"rescale_betas_zero_snr": True}],
    "DDPMParallelScheduler": SPACINGS,
    "CogVideoXDDIMScheduler": [*SPACINGS, {**RESCALED, "set_alpha_to_one": True}, {"snr_shift_scale": 1.0}],
    "PNDMScheduler": [{**one, "skip_prk_steps": True} for one in SPACINGS],
    "EulerDiscreteScheduler": [
        *SIGMAS,
        *ENDS,
        {**RESCALED, **LATENT},
        {**LATENT, "use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0},
    ],
    "HeunDiscreteScheduler": [*SIGMAS, {"beta_schedule": "exp"}, {"clip_sample": True}],
    "KDPM2DiscreteScheduler": SIGMAS,
    "LMSDiscreteScheduler": SIGMAS,
    "DPMSolverMultistepScheduler": [
        *MULTISTEP,
        *ENDS,
        {**RESCALED, **LATENT},
        {**SQUARED, "lambda_min_clipped": -5.1},
        {**SQUARED, "lambda_min_clipped": -5.1, "timestep_spacing": "leading"},
        {**LATENT, "use_lu_lambdas": True},
        {**LATENT, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        {**FLOW, "use_dynamic_shifting": True},
    ],
    "DPMSolverSinglestepScheduler": [{**LATENT}, {**SQUARED, "lambda_min_clipped": -5.1}, {"solver_order": 1}, FLOW],
    "DEISMultistepScheduler": MULTISTEP,
    "UniPCMultistepScheduler": [
        *MULTISTEP,
        *ENDS,
        {**RESCALED, **LATENT},
        {**LATENT, "solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        {**LATENT, "predict_x0": False, "final_sigmas_type": "sigma_min"},
        {**FLOW, "use_dynamic_shifting": True},
        {**FLOW, "shift_terminal": 0.1},
        {**FLOW, "use_karras_sigmas": True, "sigma_min": 0.01, "sigma_max": 200.0},
    ],
    "FlowMatchEulerDiscreteScheduler": [
        *over(shift=[1.0, 3.0, 0.5], shift_terminal=[None, 0.1]),
        *({**ramp, "shift": 3.0} for ramp in RAMPS),
        *over(use_dynamic_shifting=[True], time_shift_type=["exponential", "linear"]),
    ],
    "FlowMatchHeunDiscreteScheduler": [{"shift": 1.0}, {"shift": 3.0}],
    "EDMEulerScheduler": over(sigma_schedule=["karras", "exponential"], sigma_max=[80.0, 20.0], sigma_data=[0.5, 1.0]),
    "EDMDPMSolverMultistepScheduler": [
        *over(sigma_schedule=["karras", "exponential"], sigma_data=[0.5, 1.0], solver_order=[1, 2, 3])
    ],
}


class Float64:
    """A module whose float32 is float64."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.float32 = module.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@pytest.fixture(scope="module", autouse=True)
def float64() -> Iterator[None]:
    """diffusers' schedulers compute in float64."""
    names = [f"scheduling_{one.__module__.rpartition('scheduling_')[2]}" for one in classes().values()]
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            module = sys.modules[f"diffusers.schedulers.{name}"]
            for held in ("np", "torch"):
                if hasattr(module, held):
                    patch.setattr(module, held, Float64(getattr(module, held)))
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(torch.float32)


def classes() -> dict[str, type]:
    """Those of the installed diffusers that can be made without further packages."""
    found = {name: getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler")}
    return {name: one for name, one in found.items() if one.__module__.startswith("diffusers.schedulers.scheduling_")}


# The table.
def test_every_class_is_read_or_refused_by_name() -> None:
    named = {name for name in dir(diffusers) if name.endswith("Scheduler")}
    assert named <= {*CLASSES, *STOCHASTIC, *REFUSED}
    assert not {*CLASSES, *STOCHASTIC} & {*REFUSED}
    assert set(SETTINGS) == set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_keys_and_defaults_are_those_of_the_class(name: str) -> None:
    kind = CLASSES[name]
    parameters = dict(list(inspect.signature(getattr(diffusers, name).__init__).parameters.items())[1:])
    assert kind.parameters == set(parameters)
    assert {key: parameters[key].default for key in kind.read} == dict(kind.read)
    for key, accepted in kind.only.items():
        assert parameters[key].default in accepted, key


@pytest.mark.parametrize("name", REFUSED)
def test_a_class_that_is_not_read_is_refused_by_name(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is not read") as caught:
        read_config({"_class_name": name, **LATENT})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


# Its own loop.
def network(x: torch.Tensor, t: float) -> torch.Tensor:
    return 0.9 * (1.3 * x + t / 1000).tanh()


def own_solver(kind: SchedulerClass, options: dict[str, Any]) -> str:
    """Ours that takes the class's own step with these options; "" where none does."""
    order, family = options.get("solver_order", 2), kind.solver.partition(":")[0]
    match family:
        case "dpm++" if order == 1:
            return "ddim"
        case "dpm++":
            return f"{'dpm-solver' if options.get('algorithm_type') == 'dpmsolver' else family}:{order}m"
        case "deis" if "lambda" in kind.solver:
            return f"deis:order={order},variant=lambda"
        case "unipc":
            form = "x0" if options.get("predict_x0", True) else "eps"
            return f"unipc:order={order},variant={options.get('solver_type', 'bh2')},form={form}"
        case _:
            return kind.solver


def set_times(theirs: Any, steps: int) -> np.ndarray:
    """The times at which its network is asked, the second ones of two-stage steps left out."""
    theirs.set_timesteps(steps, **({"mu": MU} if theirs.config.get("use_dynamic_shifting") else {}))
    times = theirs.timesteps.double().numpy()
    name = type(theirs).__name__
    if name in ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "FlowMatchHeunDiscreteScheduler"):
        return np.append(times[0], times[2::2])
    return np.unique(times)[::-1] if name == "PNDMScheduler" else times


def at_our_times(theirs: Any, points: np.ndarray, convention: Convention) -> None:
    """Puts integer times, and the sigma of each, in place of those between integers."""
    process = parse_schedule(convention.schedule)
    flow = process.velocity == "flow"
    sigmas = torch.from_numpy(process.sigma(points) / (1 if flow else process.alpha(points)))
    if flow:
        sigmas[0].clamp_(max=1 - 1e-6)
    times = torch.from_numpy(points[:-1] * convention.time_scale)
    if type(theirs).__name__ == "HeunDiscreteScheduler":
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
        times = torch.cat([times[:1], times[1:].repeat_interleave(2)])
    theirs.sigmas, theirs.timesteps = sigmas, times


def own_sample(theirs: Any, noise: torch.Tensor, convention: Convention) -> torch.Tensor:
    """The class's own loop; sigma-based classes hold x / alpha."""
    name = type(theirs).__name__
    in_sigma = name in IN_SIGMA
    first = float(theirs.sigmas[0]) if hasattr(theirs, "sigmas") else 1.0
    x = noise * (math.hypot(first, 1) if in_sigma else first if convention.prediction == "edm" else 1.0)
    options = {"use_clipped_model_output": True} if name.startswith("DDIM") else {}
    for t in theirs.timesteps:
        scaled = theirs.scale_model_input(x, t) if hasattr(theirs, "scale_model_input") else x
        x = theirs.step(network(scaled, float(t)), t, x, **options, return_dict=False)[0]
    return x / math.hypot(float(theirs.sigmas[-1]), 1) if in_sigma else x


def our_sample(solver: str, convention: Convention, nfe: int, noise: torch.Tensor) -> torch.Tensor:
    grid = convention.walk(parse_solver(solver), nfe)
    program = compile(
        solver,
        convention.schedule,
        nfe,
        grid,
        basis=convention.basis,
        prediction=convention.prediction,
        clip=convention.clip,
        end=convention.end,
        sigma_data=convention.sigma_data,
    )
    return program.evaluate(lambda x, t: network(x, t * convention.time_scale), noise)


def difference(name: str, options: dict[str, Any], steps: int, own: np.ndarray, convention: Convention) -> str:
    """The wanted difference between our samples and those of the class's own loop, a row of the reference page."""
    kind = CLASSES[name]
    spacing = options.get("timestep_spacing", kind.read.get("timestep_spacing"))
    order = options.get("solver_order", 2)
    if steps == 1 and (options.get("sigma_schedule") == "exponential" or (convention.ramp and kind.ramp_of == "all")):
        return "One step"
    ends_at_noise = name.startswith("DEIS") and convention.spacing == "flow"
    if ends_at_noise or (convention.end == "first" and own[-1] == 0):
        return "A last step of length zero"
    if not kind.solver:
        return "Other steps"
    if spacing == "linspace" and (name.startswith("DDIM") or name.startswith("CogVideoX")):
        return "DDIM with linspace"
    lowered = order == 3 or convention.end == "first" or name.startswith("DEIS")
    if order > 1 and steps > 14 and lowered and not name.startswith("UniPC"):
        return "The last order"
    return ""


@pytest.mark.parametrize("name", CLASSES)
def test_times_and_samples_are_those_of_its_own_loop(name: str) -> None:
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    wrong: list[str] = []
    for options, steps in product(SETTINGS[name], STEPS):
        if options.get("shift_terminal") and steps == 1:
            continue  # theirs divides 0 by 0
        theirs = getattr(diffusers, name)(**options)
        solver = own_solver(CLASSES[name], options) or "ddim"
        if problem := compared(theirs, options, solver, steps, noise):
            wrong.append(f"{options} {steps} steps: {problem}")
    assert not wrong, "\n".join(wrong)


def compared(theirs: Any, options: dict[str, Any], solver: str, steps: int, noise: torch.Tensor) -> str:
    """What differs and should not; "" when nothing does."""
    name, convention = type(theirs).__name__, read_config(theirs.config, MU)
    process, nfe = parse_schedule(convention.schedule), 2 * steps - 1 if solver == "edm" else steps
    own = set_times(theirs, steps)
    points = make_grid(convention.walk(parse_solver(solver), nfe), process, steps, None, convention.end)
    ours = np.log(points[:-1]) / 4 if convention.prediction == "edm" else points[:-1] * convention.time_scale
    reason = difference(name, options, steps, own, convention)
    # Times: exact, or rounded where theirs lie between integers or are cut to integers.
    cut = name.startswith(("DPM", "DEIS", "UniPC")) and (convention.ramp or convention.spacing == "flow")
    allowed = np.full(len(ours), 1.0 if cut else 0.500001 if process.discrete else 1e-5)
    if convention.ramp and process.discrete:
        allowed[-3:] += 2  # moved apart
    if reason == "A last step of length zero":
        allowed[-1] = 1.0
    if reason != "One step" and (len(ours) != len(own) or (np.abs(ours - own) > allowed).any()):
        return f"times {own}, ours {ours}"
    # Samples: at our times, where they are not theirs.
    if reason:
        return ""
    if cut or (np.abs(ours - own).max() > 0 and process.discrete) or convention.ramp:
        at_our_times(theirs, points, convention)
    started = noise * points[0] if process.velocity == "flow" else noise
    expected, actual = own_sample(theirs, started, convention), our_sample(solver, convention, nfe, noise)
    error = float((actual - expected).abs().max() / expected.abs().max())
    return "" if error < 1e-5 else f"error {error:.1e}"


# The page.
def rendered() -> dict[str, str]:
    """The tables of docs/reference/diffusers-schedulers.md, by their first heading."""
    read = ["| class | keys that are read | accepted at one value | of its own step | the same step here |"]
    read += ["|---|---|---|---|---|"]
    for name, kind in {**CLASSES, **STOCHASTIC}.items():
        only = [
            f"`{key}` {' or '.join(str(one) for one in given if one is not None)}" for key, given in kind.only.items()
        ]
        cells = (*(", ".join(f"`{key}`" for key in keys) for keys in (kind.read, kind.step)),)
        solver = f"`{kind.solver}`" if kind.solver else "none"
        read.append(f"| {name} | {cells[0]} | {', '.join(only)} | {cells[1]} | {solver} |")
    refused = ["| class | why |", "|---|---|", *(f"| {name} | {why} |" for name, why in REFUSED.items())]
    return {"read": "\n".join(read), "refused": "\n".join(refused)}


def test_the_reference_page_is_made_of_the_table() -> None:
    page = (ROOT / "docs" / "reference" / "diffusers-schedulers.md").read_text()
    for what, table in rendered().items():
        assert table in page, f"the table of classes that are {what} is now:\n{table}"
    for reason in ("One step", "A last step of length zero", "Other steps", "DDIM with linspace", "The last order"):
        assert f"| {reason} |" in page
    assert f"{sum(map(len, SETTINGS.values())) * len(STEPS):,} combinations" in page
