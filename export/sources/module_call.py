"""How the forward of an nn.Module is called, what it returns, and its conditions.

The first parameter of forward is x [B, *shape], the second the time, every further one without a default a condition.
Anything else is said by name: `input=`, `time=`, `conditions=`, `output=`.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from ...engine.contract.condition import Condition
from ...engine.contract.contract import Contract
from ...engine.errors import InputError, did_you_mean
from ...engine.tensors import TORCH_DTYPES
from ..to_onnx import example_inputs, named_line, prepared
from .module_imports import importing_beside

LABEL_NAMES = ("label", "labels", "class_label", "class_labels", "y")  # taken as int64 [B] when nothing else is said


@dataclass(frozen=True)
class Call:
    """How to call forward: the parameter names of x, time and conditions, and which output to take."""

    parameters: tuple[str, ...]
    positional: int  # how many of them are passed by position
    output: str | int | None
    channels: int | None  # keep the first so many channels (the mean of a learned-sigma network)


@final
class Normalised(nn.Module):
    """forward(x [B, *shape], t [B] or [], *conditions) -> out [B, *shape] in the dtype of x."""

    def __init__(self, network: nn.Module, call: Call) -> None:
        super().__init__()
        self.network = network
        self.call = call

    def forward(self, x: Tensor, t: Tensor, *conditions: Tensor) -> Tensor:
        given = (x, t, *conditions)
        split = self.call.positional
        named = dict(zip(self.call.parameters[split:], given[split:], strict=True))
        out = pick_output(self.network(*given[:split], **named), self.call.output)
        return out[:, : self.call.channels].to(x.dtype) if self.call.channels else out.to(x.dtype)


def pick_output(returned: Any, output: str | int | None) -> Tensor:
    """The prediction among what forward returned: a tensor, a tuple, a dict or an object with tensor fields."""
    if isinstance(returned, Tensor):
        return returned
    if isinstance(returned, Mapping):
        choices: dict[str | int, Any] = dict(returned)
    elif isinstance(returned, (tuple, list)):
        choices = dict(enumerate(returned))
    else:
        choices = dict(getattr(returned, "__dict__", {}))
    choices = {key: value for key, value in choices.items() if isinstance(value, Tensor)}
    if output is not None and output not in choices and str(output).isdigit():
        output = int(output)
    if output is None and len(choices) == 1:
        output = next(iter(choices))
    if output not in choices:
        names = ", ".join(map(str, choices)) or f"no tensor ({type(returned).__name__})"
        raise InputError(f"forward returns {names}; choose the prediction with output= (--output), got {output!r}")
    return choices[output]


# Where a module comes from.
def load_factory(text: str) -> tuple[nn.Module, bytes]:
    """The module that "file.py:factory" makes, and the bytes of the file and of its neighbours. Raises InputError."""
    file, _, factory = text.rpartition(":")
    path = Path(file)
    if not factory.isidentifier():
        raise InputError(f"network '{text}': expected file.py:factory, where factory() returns an nn.Module")
    if not path.is_file():
        raise InputError(f"network '{text}': there is no file {file}; expected file.py:factory")
    source = path.read_bytes()
    name = f"pfdiff_network_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    loaded = types.ModuleType(name)
    loaded.__file__ = str(path)
    sys.modules[name] = loaded  # dataclasses and pickles inside the file look themselves up
    with importing_beside(path) as neighbours:
        try:  # compiled here: Python's cache would miss an edit within the same second
            exec(compile(source, path, "exec"), vars(loaded))
        except Exception as error:
            del sys.modules[name]
            raise InputError(f"network '{text}': {file} cannot be imported ({named_line(error)})") from error
        make = getattr(loaded, factory, None)
        if not callable(make):
            own = [key for key, one in vars(loaded).items() if getattr(one, "__module__", "") == name and callable(one)]
            held = ", ".join(own[:8]) + (", ..." if len(own) > 8 else "")
            hint = did_you_mean(factory, own)
            raise InputError(f"network '{text}': {file} has no function '{factory}'; it has {held or 'none'}{hint}")
        try:
            module = make()
        except Exception as error:
            raise InputError(
                f"network '{text}': {factory}() failed ({named_line(error)}); it is called without arguments"
            ) from error
    if not isinstance(module, nn.Module):
        raise InputError(f"network '{text}': {factory}() returned {type(module).__name__}, expected an nn.Module")
    return module, b"".join((source, *(f"|{one}|".encode() + neighbours[one] for one in sorted(neighbours))))


# How forward is called.
def read_signature(
    module: nn.Module, input: str | None, time: str | None, conditions: tuple[str, ...]
) -> tuple[tuple[str, ...], int]:
    """The parameter names of x, time and conditions, in the order they are passed, and how many go by position.

    `conditions` are the names given by the user; parameters of forward without a default join them.
    """
    parameters = inspect.signature(module.forward).parameters
    kinds = inspect.Parameter
    named = [one for one in parameters.values() if one.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)]
    open_ended = any(one.kind == kinds.VAR_KEYWORD for one in parameters.values())
    names = [one.name for one in named]
    shown = f"forward({', '.join(str(one) for one in parameters)})"
    for role, name in (("input", input), ("time", time), *(("conditions", one) for one in conditions)):
        if name is not None and name not in names and not (role == "conditions" and open_ended):
            raise InputError(f"{type(module).__name__} has no parameter '{name}' in {shown}; choose {role}= among them")
    free = [name for name in names if name not in (input, time, *conditions)]
    if len(free) < (input is None) + (time is None):
        raise InputError(
            f"{type(module).__name__}: {shown} takes no x and time; expected forward(x, t, ...) with t [B], "
            "or name them with input= and time="
        )
    x_name = input or free.pop(0)
    t_name = time or free.pop(0)
    required = [one.name for one in named if one.default is kinds.empty and one.name in free]
    order = [x_name, t_name, *sorted({*required, *conditions}, key=[*names, *conditions].index)]
    leading = [one.name for one in named if one.kind != kinds.KEYWORD_ONLY]
    positional = 0
    while positional < min(len(order), len(leading)) and order[positional] == leading[positional]:
        positional += 1
    only = [one.name for one in named if one.kind == kinds.POSITIONAL_ONLY and one.name not in order[:positional]]
    if set(only) & set(order):
        raise InputError(f"{type(module).__name__}: {shown} takes {only[0]} by position only; drop the '/'")
    return tuple(order), positional


def left_out(module: nn.Module, parameters: tuple[str, ...]) -> tuple[str, ...]:
    """The optional parameters of forward that are not among `parameters`, and so keep their defaults."""
    kinds = inspect.Parameter
    variable = (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
    given = inspect.signature(module.forward).parameters.values()
    return tuple(one.name for one in given if one.kind not in variable and one.name not in parameters)


def read_conditions(
    module: nn.Module, names: tuple[str, ...], given: Mapping[str, Condition | Tensor]
) -> tuple[Condition, ...]:
    """A Condition for each name: as given, from an example tensor [B, ...], or int64 [B] for a label's name."""
    known = {tensor: name for name, tensor in TORCH_DTYPES.items()}
    found = []
    for name in names:
        one = given.get(name)
        if one is None and name in LABEL_NAMES:
            one = Condition(name, "int64")
        if isinstance(one, Tensor):
            if one.dtype not in known or one.ndim < 1:
                raise InputError(
                    f"condition '{name}': example of {one.dtype} {list(one.shape)}, "
                    f"expected [B, ...] of {', '.join(known.values())}"
                )
            one = Condition(name, known[one.dtype], tuple(one.shape[1:]))
        if not isinstance(one, Condition):
            raise InputError(
                f"{type(module).__name__}.forward also needs '{name}'; say what it is with "
                f"conditions={{'{name}': Condition('{name}', dtype, shape)}} "
                f"or an example tensor (--condition {name}:dtype:shape)"
            )
        found.append(one)
    return tuple(found)


# Trying it out.
def probe(module: nn.Module, call: Call, contract: Contract) -> tuple[list[int], dict[str, int]]:
    """Run forward once on two samples: the output's shape, and for each int64 label the size of its embedding table."""
    with prepared(module, torch.float32) as network, torch.no_grad():
        batch = contract.fixed_batch or 2
        inputs = example_inputs(contract, batch)
        sizes: dict[str, int] = {}
        labels = dict(zip(call.parameters[2:], inputs[2:], strict=True))
        handles = [
            one.register_forward_pre_hook(_note_table(labels, sizes))
            for one in network.modules()
            if isinstance(one, nn.Embedding)
        ]
        before = [one._version for one in inputs if not one.is_inference()]
        try:
            out = Normalised(network, replace(call, channels=None))(*inputs)
        finally:
            for handle in handles:
                handle.remove()
        after = [one._version for one in inputs if not one.is_inference()]
        written = [name for name, was, now in zip(call.parameters, before, after, strict=False) if was != now]
        if written:
            raise InputError(
                f"network '{contract.name}': forward writes to its input {written[0]}; write x = x - 0.1 in place of "
                "x -= 0.1, or copy it first"
            )
    return list(out.shape), sizes


def _note_table(labels: Mapping[str, Tensor], sizes: dict[str, int]) -> Any:
    def hook(table: nn.Embedding, args: tuple[Any, ...]) -> None:
        for name, label in labels.items():
            if args and isinstance(args[0], Tensor) and args[0].data_ptr() == label.data_ptr():
                sizes[name] = min(table.num_embeddings, sizes.get(name, table.num_embeddings))

    return hook
