"""The options that describe a network become a `Network`, or a path with its conditions where it is an engine."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...engine.errors import InputError
from . import options
from .options import shortened

if TYPE_CHECKING:
    from ...engine.artifact import Artifact
    from ...engine.contract.condition import Condition
    from ...engine.contract.contract import Contract

WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
# Options by the name of their parameter: what describes a network, and with it what building or sampling it takes.
DESCRIBING: dict[str, Any] = {
    "shape": options.Shape,
    "schedule": options.Schedule,
    "prediction": options.Prediction,
    "input_name": options.InputName,
    "time_name": options.TimeName,
    "output_name": options.OutputName,
    "condition": options.ConditionOption,
    "time_scale": options.TimeScale,
    "time_map": options.TimeMap,
    "time_dtype": options.TimeDtype,
    "learned_sigma": options.LearnedSigma,
    "sigma_data": options.SigmaData,
    "data_range": options.DataRange,
}
BUILT: dict[str, Any] = {
    **DESCRIBING,
    "guidance": options.Guidance,
    "decoder": options.DecoderOption,
    "lora": options.LoraOption,
    "controlnet": options.ControlnetOption,
    "no_encoders": options.NoEncoders,
}
SAMPLED: dict[str, Any] = {
    "prompt": options.Prompts,
    "negative_prompt": options.NegativePrompts,
    **DESCRIBING,
    "guidance": options.Guidance,
    "backend": options.Backend,
    "threads": options.Threads,
}
DEFAULTS: dict[str, Any] = {"learned_sigma": False, "no_encoders": False, "backend": "auto"}  # of all others None
NetworkOrEngine = Annotated[str, typer.Argument(metavar="NETWORK", help="What build takes, or an engine directory.")]
Calibration = Annotated[int, options.parsed(options.integer, "--calibration", "Seeds that choose.")]
Reference = Annotated[int | None, options.parsed(options.integer, "--reference", "Evaluations of the reference.")]
SAME_NAMES = (  # options of a command that `Network` takes by the same name and as they are
    "schedule",
    "prediction",
    "time_scale",
    "time_map",
    "time_dtype",
    "learned_sigma",
    "sigma_data",
    "guidance",
    "decoder",
)


def takes(table: Mapping[str, Any], before: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command with the options of a table before one of its own, or last; it reads them from `context.params`."""

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        parameters = list(signature.parameters.values())
        place = len(parameters) if before is None else list(signature.parameters).index(before)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters[place:place] = [
            inspect.Parameter(name, kind, default=DEFAULTS.get(name), annotation=option)
            for name, option in table.items()
        ]

        @functools.wraps(command)
        def called(**given: Any) -> None:
            command(**{name: given[name] for name in signature.parameters})

        result: Any = called
        result.__signature__ = signature.replace(parameters=parameters)  # what Typer reads
        return result

    return decorated


def read_engine(engine: Path, *, nfe: int | None = None, backend: str = "auto", device: str = "auto") -> Artifact:
    """What an engine directory says of itself, and the options that say how it is run, checked without torch.

    Files are verified when the engine is loaded. Raises InputError, EngineFileError, BackendError.
    """
    from ...engine.artifact import read_artifact
    from ...engine.backends.registry import check_backend
    from .values import device_from

    device_from(device)
    check_backend(backend)
    artifact = read_artifact(engine, verify=False)
    if nfe is not None:
        artifact.program(nfe)
    return artifact


@dataclass(frozen=True)
class Opened:
    """What `tune` and `compare` work on: a Network or an engine's path, its conditions by name, the clip."""

    source: Any
    conditions: dict[str, Any]
    clip: float | None


def opened(network: str, context: typer.Context) -> Opened:
    """The network or engine that a command names, with what its options say. Raises InputError, EngineFileError."""
    from ...engine.artifact import MANIFEST
    from .prompts import prompted_conditions

    contract: Contract
    params, extra = context.params, context.args
    if (Path(network) / MANIFEST).is_file():
        _check_of_no_network(network, context)
        artifact = read_engine(Path(network), backend=params["backend"])
        source, contract, latents = Path(network), artifact.contract, artifact.decoder is not None
        extra = [*extra, "--guidance", params["guidance"]] if params["guidance"] else extra  # of an engine: the scale
        conditions = prompted_conditions(context, contract, source, extra)
    else:
        described = network_arguments(network, params)
        from ... import Network

        source = Network(network, **described, encoders=False)
        contract, latents = source.contract, source.decoder is not None
        conditions = prompted_conditions(context, contract, None)
    return Opened(source, conditions, clip_for(params, contract, latents=latents))


def clip_for(params: Mapping[str, Any], contract: Contract, *, latents: bool) -> float | None:
    """The number that --clip means for a network, None without the option; a line on stderr when it cuts data.

    Raises InputError for `data` where samples are latents, whose range nobody knows.
    """
    from .values import clip_from

    if params["clip"] is None:
        return None
    clip, largest = clip_from(params["clip"]), max(map(abs, contract.data_range))
    if clip == "data" and latents:
        raise InputError("--clip data: samples are latents, which have no range of their own; give a number")
    if clip == "data":
        return largest
    if not latents and 0 < float(clip) < largest:
        low, high = contract.data_range
        print(f"pfdiff: --clip {float(clip):g} cuts data in {low:g}..{high:g}; --clip data does not", file=sys.stderr)
    return float(clip)


def _check_of_no_network(engine: str, context: typer.Context) -> None:
    """An engine says itself what its network is. Raises InputError on an option that says it again."""
    for option in context.command.params:
        if option.name in DESCRIBING and context.params[option.name]:
            raise InputError(f"{engine} is an engine, which has its own {option.opts[0]}; leave it out")


def network_arguments(network: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of `Network` for what a command's options say of a network. Raises InputError."""
    from ...engine.compiler.schedule import parse_schedule
    from ...export.time_map import parse_prediction, parse_time_map
    from .values import range_from, shape_from

    _check_source(network)
    if given["schedule"]:
        parse_schedule(given["schedule"])
    if given.get("prediction"):
        parse_prediction(given["prediction"])
    if given.get("time_map"):
        parse_time_map(given["time_map"])
    shape, output = given["shape"], given["output_name"]
    is_index = output is not None and output.isdigit() and not network.endswith(".onnx")  # of a module's tuple
    return {
        "shape": shape_from(shape) if shape else None,
        "input": given["input_name"],
        "time": given["time_name"],
        "output": int(output) if output and is_index else output,
        "conditions": described_conditions(given["condition"] or []),
        **{name: given[name] for name in SAME_NAMES if name in given},
        "data_range": range_from(given["data_range"]) if given.get("data_range") else None,
    }


def built_arguments(network: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """`network_arguments` of a network that is built: with LoRA, ControlNet and encoders of a pipeline."""
    controlnets = given["controlnet"] or []
    if len(controlnets) > 1:
        raise InputError(
            f"--controlnet is given {len(controlnets)} times, and an engine holds one; leave all others out"
        )
    parts = {"lora": given["lora"] or (), "controlnet": next(iter(controlnets), None)}
    parts |= {"encoders": not given["no_encoders"]}
    return {**network_arguments(network, given), **parts}


def _check_source(network: str) -> None:
    """Says of what is often tried, and is no network, how to make one of it. Raises InputError."""
    from ...export.zoo import NAMES

    path = Path(network)
    if network in NAMES:
        return
    if path.suffix in WEIGHTS:
        raise InputError(
            f"network '{shortened(network)}': weights alone hold no network; give FILE.py:FACTORY, whose function "
            "builds the module and loads them, or the diffusers folder that they are from"
        )
    if path.exists() or ".py:" in network or network.endswith(".onnx"):
        return
    if path.suffix == ".engine":
        raise InputError(f"engine '{shortened(network)}' does not exist; give a directory that 'pfdiff build' wrote")
    if near := get_close_matches(network, NAMES, 1):
        raise InputError(f"network '{network}': not known; did you mean '{near[0]}'?")


def described_conditions(texts: Sequence[str]) -> dict[str, Condition]:
    """'label:int64=10' and 'text:float32:77x768' as conditions by name. Raises InputError."""
    from ...engine.contract.condition import parse_condition

    found = {one.name: one for one in map(parse_condition, texts)}
    if len(found) < len(texts):
        raise InputError(f"--condition {' --condition '.join(texts)}: expected each name once")
    return found
