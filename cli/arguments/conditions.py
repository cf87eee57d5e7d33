"""A network's own conditions on the command line: `--label 3,5,7`, `--label bag`, `--prompt_embeds text.npy`.

`sample` gives number i to seed number i. `generate`, `evaluate` and `tune` give seed s the number s mod k of k numbers:
see `engine/contract/seed_conditions.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...engine.errors import InputError, did_you_mean
from .options import shortened

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...engine.contract.condition import Condition
    from ...engine.contract.contract import Contract

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
ARRAYS = (".npy", ".npz", ".safetensors")


def conditions_from(
    given: Sequence[str], contract: Contract, batch: int, encoded: Collection[str] = ()
) -> dict[str, NDArray[Any]]:
    """The arrays [batch, *shape] of the conditions that are given or have no default, by the contract's names.

    encoded: conditions that need not be given, since prompts stand for them.
    Raises InputError on what `given_conditions` and `Condition.values` refuse; it names what was typed.
    """
    from ...engine.contract.controls import is_control_picture

    typed = given_conditions(given, contract)
    own = contract.by_name(typed)
    options = {name: f"--{text}" for name, text in contract.called(typed).items()}
    found: dict[str, NDArray[Any]] = {}
    for one in contract.conditions:
        value = own.get(one.name)
        if isinstance(value, list) and not one.shape and len(value) not in (1, batch):
            raise InputError(f"{options[one.name]}: {len(value)} values for {batch} seeds; give 1 or {batch}")
        if is_control_picture(one, value):
            found[one.name] = _picture_of_each(value, batch, options[one.name])
        elif one.name in own or (one.default is None and one.name not in encoded):
            found[one.name] = one.values(value, batch, options.get(one.name, f"--{one.alias or one.name}"))
    return found


def check_in_turn(given: Mapping[str, Any], contract: Contract, encoded: Collection[str] = ()) -> None:
    """What the seeds cannot take in turn of the values that were typed, and what is missing.

    encoded: conditions that need not be given, since prompts stand for them. Raises InputError that names the option.
    """
    from ...engine.contract.seed_conditions import condition_table

    own, called = contract.by_name(given), contract.called(given)
    for one in contract.conditions:
        if one.name in own or (one.default is None and one.name not in encoded):
            condition_table(one, own.get(one.name), f"--{called.get(one.name) or one.alias or one.name}")


def _picture_of_each(value: Any, batch: int, option: str) -> NDArray[Any]:
    """[batch, ...] of the picture of a ControlNet, which the engine encodes."""
    import numpy as np

    rows = value[None] if value.ndim == 3 else value
    if rows.ndim != 4 or len(rows) not in (1, batch):
        raise InputError(f"{option}: got {list(value.shape)}, expected one picture [3, H, W], or {batch}, one a seed")
    return np.broadcast_to(rows, (batch, *rows.shape[1:]))


def given_conditions(given: Sequence[str], contract: Contract) -> dict[str, Any]:
    """The values by the typed name for '--label 3', '--label=3,5', '--label bag' and '--prompt_embeds text.npy'.

    `given` are the arguments that the command did not know itself. Every condition of the network may be named there,
    with - or _. Raises InputError on an unknown option and a missing value.
    """
    known = {name: condition for condition in contract.conditions for name in (condition.name, condition.alias) if name}
    found: dict[str, str] = {}
    queue = list(given)
    while queue:
        argument = queue.pop(0)
        name, equals, text = argument.removeprefix("--").partition("=")
        name = name if name in known else name.replace("-", "_")
        if not argument.startswith("--") or name not in known:
            options = [f"--{one.alias or one.name}" for one in contract.conditions]
            hint = did_you_mean(argument, options) if argument.startswith("--") else ""
            raise InputError(
                f"unknown argument '{shortened(argument)}'; this network's conditions are: "
                f"{', '.join(options) or 'none'}; see --help for the rest{hint}"
            )
        if not equals and not queue:
            raise InputError(f"{argument}: a value is missing; write {argument}=VALUE")
        if name in found:
            raise InputError(f"--{name} is given twice; give it once, several values as --{name}=3,5")
        found[name] = text if equals else queue.pop(0)
    contract.by_name(found)  # none twice
    return {name: _value_from(name, known[name], text) for name, text in found.items()}


def _value_from(name: str, condition: Condition, text: str) -> Any:
    """One value, a list, the names of labels, or the array in a file."""
    if text in condition.labels:
        return text
    from ...engine.contract.controls import CONTROL_IMAGE, CONTROL_LATENTS

    if condition.name in (CONTROL_IMAGE, CONTROL_LATENTS) and Path(text).suffix.lower() in PICTURES:
        read = _picture_from(name, text.removeprefix("@"))
        if condition.name == CONTROL_IMAGE and read.shape[1:] != condition.shape[1:]:
            got, wanted = (f"{shape[2]} x {shape[1]}" for shape in (read.shape, condition.shape))
            raise InputError(f"--{name} '{shortened(text)}': got {got} pixels, expected {wanted}; resize it")
        return read
    if text.startswith("@") or text.lower().endswith(ARRAYS):
        return _array_from(name, condition, text.removeprefix("@"))
    values: list[Any] = []
    for part in (part.strip() for part in text.split(",")):
        span = re.fullmatch(r"(\d{1,6})-(\d{1,6})", part) if condition.dtype.startswith("int") else None
        if span:
            values.extend(range(int(span[1]), int(span[2]) + 1))
        elif part in condition.labels:
            values.append(condition.labels.index(part))
        else:
            values.append(_number_from(name, condition, part))
    return values[0] if len(values) == 1 else values


def _number_from(name: str, condition: Condition, text: str) -> int | float:
    try:
        return int(text) if len(text) < 40 else float(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        expected = f"one of {', '.join(condition.labels)}" if condition.labels else f"a number ({condition.dtype})"
        files = f", or a file ({', '.join(ARRAYS)})" if condition.shape else ""
        raise InputError(f"--{name} '{shortened(text)}': expected {expected}{files}") from None


def _picture_from(name: str, path: str) -> NDArray[Any]:
    """float32 [3, H, W] in 0..1 of a picture file."""
    import numpy as np

    from .prompts import picture_from

    pixels = picture_from(f"--{name}", path)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)).transpose(2, 0, 1).astype(np.float32) / 255


def _array_from(name: str, condition: Condition, path: str) -> NDArray[Any]:
    """The array in a file; where it holds several, that of the typed name, of the condition's name or alias."""
    from ...engine.files.array_files import read_array

    try:
        return read_array(Path(path), (name, condition.alias, condition.name))
    except InputError as error:
        raise InputError(f"--{name}: {error}") from None
