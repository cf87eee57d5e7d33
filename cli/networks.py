"""The options that describe a network become a `Network`, or a path with its conditions where it is an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..engine.errors import InputError
from . import options

if TYPE_CHECKING:
    from ..engine.contract import Condition, Contract

DESCRIBING = (
    *("shape", "schedule", "prediction", "input_name", "time_name", "output_name", "condition"),
    *("time_scale", "time_dtype", "learned_sigma", "sigma_data"),
)
NetworkOrEngine = Annotated[
    str,
    typer.Argument(metavar="NETWORK", help="What build takes, or an engine directory."),
]
Calibration = Annotated[
    int, typer.Option("--calibration", parser=options.integer, metavar="<int>", help="Seeds that choose.")
]
Reference = Annotated[
    int | None,
    typer.Option("--reference", parser=options.integer, metavar="<int>", help="Evaluations of the reference."),
]
SAME_NAMES = (  # options of a command that `Network` takes by the same name and as they are
    "schedule",
    "prediction",
    "time_scale",
    "time_dtype",
    "learned_sigma",
    "sigma_data",
    "guidance",
    "decoder",
)


def opened(network: str, context: typer.Context) -> tuple[Any, dict[str, Any]]:
    """(a Network, or the path of an engine directory; the conditions that the command line gives)."""
    from ..engine.artifact import MANIFEST, read_artifact
    from .values import given_conditions

    contract: Contract
    extra = context.args
    if (Path(network) / MANIFEST).is_file():
        _check_of_no_network(network, context)
        source, contract = Path(network), read_artifact(network).contract
        guidance = context.params["guidance"]
        extra = [*extra, "--guidance", guidance] if guidance else extra  # of an engine it is the scale
    else:
        from .. import Network

        source = Network(network, **network_arguments(network, context.params))
        contract = source.contract
    return source, given_conditions(extra, contract)


def _check_of_no_network(engine: str, context: typer.Context) -> None:
    """An engine says itself what its network is. Raises InputError on an option that says it again."""
    for option in context.command.params:
        if option.name in DESCRIBING and context.params[option.name]:
            raise InputError(f"{engine} is an engine, which has its own {option.opts[0]}; leave it out")


def network_arguments(network: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of `Network` for what a command's options say of a network. Raises InputError."""
    from .values import shape_from

    shape, output = given["shape"], given["output_name"]
    is_index = output is not None and output.isdigit() and not network.endswith(".onnx")  # of a module's tuple
    return {
        "shape": shape_from(shape) if shape else None,
        "input": given["input_name"],
        "time": given["time_name"],
        "output": int(output) if output and is_index else output,
        "conditions": described_conditions(given["condition"] or []),
        **{name: given[name] for name in SAME_NAMES if name in given},
    }


def described_conditions(texts: Sequence[str]) -> dict[str, Condition]:
    """'label:int64=10' and 'text:float32:77x768' as conditions by name. Raises InputError."""
    from ..engine.condition import parse_condition

    found = {one.name: one for one in map(parse_condition, texts)}
    if len(found) < len(texts):
        raise InputError(f"--condition {' --condition '.join(texts)}: expected each name once")
    return found
