"""Whatever came -> `Described`. Shipped networks and diffusers models describe themselves; options go on top."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine.compiler.schedule import named_by_content, parse_schedule
from ..engine.contract.condition import Condition
from ..engine.contract.contract import PREDICTIONS
from ..engine.errors import InputError
from ..engine.files.file_records import MANIFEST
from . import zoo
from .described import Described, Given
from .pipelines.hub import fetch, is_hub_id
from .policies import open_policy
from .sources.from_diffusers import open_diffusers
from .sources.onnx_roles import read_model
from .time_map import TimeMap, parse_prediction, parse_time_map

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from torch import nn

WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
FORMS = (
    "a path ending in .onnx, file.py:factory, a diffusers folder, owner/name of the Hugging Face hub, or a shipped "
    f"network ({', '.join(zoo.NAMES)})"
)


def describe(source: nn.Module | str | Path | DiffusionPipeline, given: Given) -> Described:
    """The network in `source`, with `given` before what it says itself.

    Everything that needs no look at the network is checked here. Raises InputError, one line.
    """
    for name, one in given.conditions.items():
        if isinstance(one, Condition) and one.name != name:
            raise InputError(f"condition '{name}' is described as '{one.name}'; use one name")
    text = str(source) if isinstance(source, (str, Path)) else None
    if text is not None and is_hub_id(text):
        fetched = fetch(text, encoders=given.encoders)
        named = replace(given, name=given.name or fetched.name)
        described = describe(fetched.folder, named)
        return replace(described, origin={**fetched.origin, **described.origin})
    if text == "":
        raise InputError(f"network '': expected {FORMS}")
    if text is not None and (Path(text) / MANIFEST).is_file():
        raise InputError(f"network '{text}' is an engine already; load it, or give the network that it was built from")
    # With a role said by name a diffusers model is a module like any.
    roles = (given.input, given.time, given.output)
    if text is not None and text in zoo.NAMES:
        found = zoo.load(text)
    elif roles == (None, None, None) and (found := open_policy(source)) is not None:
        pass
    elif roles == (None, None, None) and (found := open_diffusers(source, given)) is not None:
        given = replace(given, conditions={}, lora=(), controlnet=None)  # they are in it
    else:
        found = _bare(source, text)
    _check_parts(found.name, given)
    described = _laid_over(found, given)
    _check(described)
    return replace(described, schedule=named_by_content(described.schedule))


def _bare(source: Any, text: str | None) -> Described:
    """A module, a factory or an ONNX file, which says nothing of itself."""
    from torch import nn

    if text is None and not isinstance(source, nn.Module):
        raise InputError(f"network: got {type(source).__name__}, expected an nn.Module, a pipeline or {FORMS}")
    if text is not None and not (text.endswith(".onnx") or ".py:" in text):
        raise InputError(f"network '{text}': {_hint(text)}; expected {FORMS}")
    return Described(source if text is None else text, _name_of(source), None, "", "")


def _hint(text: str) -> str:
    """What a text may be that is no form of network."""
    if text.endswith(WEIGHTS):
        return "not known: weights alone; write a function that makes the module and loads them, file.py:factory"
    if text.endswith(".py"):
        return f"a Python file alone; name the function in it that makes the module, {text}:factory"
    near = difflib.get_close_matches(text, zoo.NAMES, 1)
    return f"not known; did you mean {near[0]}" if near else "not known: no file or folder of this name is here"


def _laid_over(found: Described, given: Given) -> Described:
    """`found` with what was given in place of what it says."""
    ranged = found.data_range if given.decoder is None else (-1.0, 1.0)
    prediction, negated = parse_prediction(given.prediction or found.prediction)
    scale, time_map = _time(found, given)
    return replace(
        found,
        name=given.name or found.name,
        shape=given.shape or found.shape,
        schedule=given.schedule or found.schedule,
        prediction=prediction,
        conditions={**found.conditions, **given.conditions},
        input=given.input,
        time=given.time,
        output=given.output,
        time_scale=scale,
        time_map=time_map,
        negated=negated != (prediction == "flow" and time_map is not None and time_map.turns_round),
        time_dtype=given.time_dtype,
        learned_sigma=given.learned_sigma or found.learned_sigma,
        sigma_data=found.sigma_data if given.sigma_data is None else given.sigma_data,
        data_range=given.data_range or ranged,
        example=dict(given.example),
        decoder=found.decoder if given.decoder is None else given.decoder,
        guidance=found.guidance if given.encoders else None,
        policy=given.policy or found.policy,
        prompts=found.prompts if given.encoders else None,
    )


def _time(found: Described, given: Given) -> tuple[float, TimeMap | None]:
    """(time_scale, the map where a scale does not say it all)."""
    if given.time_map is None:
        return found.time_scale if given.time_scale is None else given.time_scale, None
    if given.time_scale is not None:
        raise InputError(f"got time_map '{given.time_map}' and time_scale {given.time_scale:g}; give one of them")
    time_map = parse_time_map(given.time_map)
    return (time_map.scale, None) if time_map.is_scale else (1.0, time_map)


def _check_parts(name: str, given: Given) -> None:
    """Raises InputError for files that only a pipeline of diffusers takes, which would otherwise be left out."""
    for option, got in (("lora", ", ".join(given.lora)), ("controlnet", given.controlnet)):
        if got:
            raise InputError(
                f"network '{name}': got {option}={got} (--{option}), which belongs to a pipeline of diffusers; "
                "give its folder, without input=, time= and output=, or leave it out"
            )


def _check(described: Described) -> None:
    """Everything said of the network that needs no look at it, so that mistakes show before any work."""
    name = described.name
    missing = []
    if not described.schedule:
        missing.append(("the schedule", "schedule= (--schedule linear:1000)"))
    if not described.prediction:
        missing.append(("what it predicts", f"prediction= (--prediction {'|'.join(PREDICTIONS)})"))
    if missing and described.shape is None and _leaves_shape_open(described):
        missing.append(("the sample's shape", "shape= (--shape 3x64x64)"))
    if missing:
        words, remedies = zip(*missing, strict=True)
        verb = "is" if len(missing) == 1 else "are"
        raise InputError(f"network '{name}': {_listed(words)} {verb} missing; give {_listed(remedies)}")
    described.contract(described.shape or (1,), time_dtype=described.time_dtype or "float32")
    parse_schedule(described.schedule)


def _leaves_shape_open(described: Described) -> bool:
    """Whether a look at the source shows that it does not say one sample's shape."""
    source = described.source
    if not isinstance(source, str) or not source.endswith(".onnx"):
        return not described.example
    ports = [value.type.tensor_type.shape.dim for value in read_model(Path(source)).graph.input]
    return not all(one.dim_value > 0 for one in list(max(ports, key=len, default=()))[1:])


def _listed(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _name_of(source: Any) -> str:
    """A module's class, `stem` of a file, `stem-factory` of "file.py:factory": one file may make several networks."""
    if not isinstance(source, (str, Path)):
        return type(source).__name__
    file, separator, factory = str(source).rpartition(".py:")
    return f"{Path(file).name}-{factory}" if separator else Path(source).stem
