"""What is typed becomes values: seeds, lists of integers, shapes, grids, values of conditions."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...engine.errors import InputError
from .options import shortened

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...engine.condition import Condition
    from ...engine.contract import Contract

LAST_SEED = 2**64 - 1
MOST_SEEDS = 1_000_000  # one command; a slip such as 0-99999999999 should not fill the memory
ARRAYS = (".npy", ".npz", ".safetensors")


def seeds_from(text: str) -> list[int]:
    """'0-15', '0,3,7' or '0-3,9' as a list. Raises InputError on anything else and beyond 2^64 - 1."""
    seeds: list[int] = []
    given = shortened(text)
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not found or not part.isascii():
            raise InputError(
                f"--seeds '{given}': '{shortened(part)}' is no seed; expected integers and ranges such as 0-15 or 0,3,7"
            )
        first_digits, last_digits = found[1].lstrip("0") or "0", (found[2] or found[1]).lstrip("0") or "0"
        for digits in (first_digits, last_digits):
            if len(digits) > 20 or int(digits) > LAST_SEED:
                raise InputError(f"--seeds '{given}': {shortened(digits)} is above the largest seed {LAST_SEED}")
        first, last = int(first_digits), int(last_digits)
        if last < first:
            raise InputError(f"--seeds '{given}': the range {part.strip()} runs backwards; write {last}-{first}")
        if len(seeds) + last - first + 1 > MOST_SEEDS:
            raise InputError(f"--seeds '{given}': more than {MOST_SEEDS} seeds; split them over several commands")
        seeds.extend(range(first, last + 1))
    return seeds


def integers_from(option: str, text: str) -> list[int]:
    """'5,8' as [5, 8], each at least 1, without repetitions. Raises InputError that names `option`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,9}", part) and int(part) for part in parts):
        given = shortened(text)
        raise InputError(f"{option} '{given}': expected positive integers separated by commas, such as {option} 5,8")
    return list(dict.fromkeys(int(part) for part in parts))


def shape_from(text: str) -> tuple[int, ...]:
    """'3x64x64' as (3, 64, 64). Raises InputError."""
    if not re.fullmatch(r"[1-9][0-9]{0,8}(x[1-9][0-9]{0,8}){0,15}", text):
        given = shortened(text)
        raise InputError(f"--shape '{given}': expected one sample's positive sizes joined by x, such as 3x64x64")
    return tuple(int(size) for size in text.split("x"))


def scale_from(text: str) -> tuple[float, float]:
    """'0,1' of --scale as (0.0, 1.0). Raises InputError."""
    return _two_numbers("--scale", text, "0,1")


def range_from(text: str) -> tuple[float, float]:
    """'-1,1' of --data-range as (-1.0, 1.0), ascending. Raises InputError."""
    low, high = _two_numbers("--data-range", text, "-1,1")
    if not low < high:
        raise InputError(f"--data-range '{text}': expected the smaller number first, such as --data-range=-1,1")
    return low, high


def _two_numbers(option: str, text: str, example: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        given = shortened(text)
        raise InputError(f"{option} '{given}': expected two numbers, such as {option}={example}") from None
    return low, high


def clip_from(text: str) -> float | str:
    """'1' of --clip as 1.0, 'data' as it is. Raises InputError."""
    if text == "data":
        return text
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--clip '{shortened(text)}': expected a number, or data for the data's range") from None


def grid_from(text: str) -> str | tuple[float, ...]:
    """A rule's name as it is, '999,500,0' as the explicit times. Raises InputError on a list with a bad number."""
    if not re.match(r"\s*[-+.\d]", text):
        return text
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        given = shortened(text)
        raise InputError(f"--grid '{given}': expected a rule's name, or all times separated by commas") from None


def end_from(text: str) -> str | float:
    """'0.002' as the time; a word as it is."""
    try:
        return float(text)
    except ValueError:
        return text


def device_from(text: str) -> str:
    """The same, if it is spelled like a device; whether the machine has it is seen later. Raises InputError."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text):
        raise InputError(f"device '{shortened(text)}', expected auto, cpu, cuda or cuda:N")
    return text


# Conditions.
def conditions_from(
    given: Sequence[str], contract: Contract, batch: int, encoded: Collection[str] = ()
) -> dict[str, NDArray[Any]]:
    """The arrays [batch, *shape] of the conditions that are given or have no default, by the contract's names.

    encoded: conditions that need not be given, since prompts stand for them.
    Raises InputError on what `given_conditions` and `Condition.values` refuse; it names what was typed.
    """
    typed = given_conditions(given, contract)
    own = contract.by_name(typed)
    options = {name: f"--{text}" for name, text in contract.called(typed).items()}
    found: dict[str, NDArray[Any]] = {}
    for one in contract.conditions:
        value = own.get(one.name)
        if isinstance(value, list) and not one.shape and len(value) not in (1, batch):
            raise InputError(f"{options[one.name]}: {len(value)} values for {batch} seeds; give 1 or {batch}")
        if one.name in own or (one.default is None and one.name not in encoded):
            found[one.name] = one.values(value, batch, options.get(one.name))
    return found


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
            options = ", ".join(f"--{one.alias or one.name}" for one in contract.conditions) or "none"
            raise InputError(
                f"unknown argument '{shortened(argument)}'; this network's conditions are: {options}; see --help for "
                "the rest"
            )
        if not equals and not queue:
            raise InputError(f"{argument}: a value is missing; write {argument}=VALUE")
        found[name] = text if equals else queue.pop(0)
    contract.by_name(found)  # none twice
    return {name: _value_from(name, known[name], text) for name, text in found.items()}


def _value_from(name: str, condition: Condition, text: str) -> Any:
    """One value, a list, the names of labels, or the array in a file."""
    if text in condition.labels:
        return text
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


def _array_from(name: str, condition: Condition, path: str) -> NDArray[Any]:
    """The array in a file; where it holds several, that of the typed name, of the condition's name or alias."""
    from ...engine.files.array_files import read_array

    try:
        return read_array(Path(path), (name, condition.alias, condition.name))
    except InputError as error:
        raise InputError(f"--{name}: {error}") from None
