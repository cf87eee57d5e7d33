"""What the words of the command line mean: seeds, lists of integers, shapes, values of conditions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..engine.contract import Condition, Contract

LAST_SEED = 2**64 - 1
MOST_SEEDS = 1_000_000  # one command; a slip such as 0-99999999999 should not fill the memory


def seeds_from(text: str) -> list[int]:
    """'0-15', '0,3,7' or '0-3,9' as a list. Raises InputError on anything else and beyond 2^64 - 1."""
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not found:
            raise InputError(
                f"--seeds '{text}': '{part}' is no seed; expected integers and ranges such as 0-15 or 0,3,7"
            )
        first = int(found[1])
        last = int(found[2] or first)
        if last < first:
            raise InputError(f"--seeds '{text}': the range {part.strip()} runs backwards; write {last}-{first}")
        if last > LAST_SEED:
            raise InputError(f"--seeds '{text}': {last} is above the largest seed {LAST_SEED}")
        if len(seeds) + last - first + 1 > MOST_SEEDS:
            raise InputError(f"--seeds '{text}': more than {MOST_SEEDS} seeds; split them over several commands")
        seeds.extend(range(first, last + 1))
    return seeds


def integers_from(option: str, text: str) -> list[int]:
    """'5,8' as [5, 8], each at least 1, without repetitions. Raises InputError that names `option`."""
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,9}", word) and int(word) for word in words):
        raise InputError(f"{option} '{text}': expected positive integers separated by commas, such as {option} 5,8")
    return list(dict.fromkeys(int(word) for word in words))


def shape_from(text: str) -> tuple[int, ...]:
    """'3x64x64' as (3, 64, 64). Raises InputError."""
    if not re.fullmatch(r"[1-9][0-9]{0,8}(x[1-9][0-9]{0,8})*", text):
        raise InputError(f"--shape '{text}': expected one sample's positive sizes joined by x, such as 3x64x64")
    return tuple(int(size) for size in text.split("x"))


def scale_from(text: str) -> tuple[float, float]:
    """'0,1' as (0.0, 1.0). Raises InputError."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise InputError(f"--scale '{text}': expected two numbers, such as --scale 0,1") from None
    return low, high


def grid_from(text: str) -> str | tuple[float, ...]:
    """A rule's name as it is, '999,500,0' as the explicit times. Raises InputError on a list with a bad number."""
    if not re.match(r"\s*[-+.\d]", text):
        return text
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise InputError(f"--grid '{text}': expected a rule's name, or all times separated by commas") from None


def end_from(text: str) -> str | float:
    """'0.002' as the time; a word as it is."""
    try:
        return float(text)
    except ValueError:
        return text


def conditions_from(words: Sequence[str], contract: Contract, batch: int) -> dict[str, NDArray[Any]]:
    """The arrays [batch, *shape] of the conditions that `words` give or that have no default.

    Raises InputError on what `given_conditions` and `Condition.values` refuse.
    """
    given = given_conditions(words, contract)
    return {
        one.name: one.values(given.get(one.name), batch)
        for one in contract.conditions
        if one.name in given or one.default is None
    }


def given_conditions(words: Sequence[str], contract: Contract) -> dict[str, Any]:
    """The values by name for '--label 3', '--label=3,5', '--label bag' and '--embedding @values.npy'.

    `words` are what the command did not know itself; every condition of the network may be named there.
    Raises InputError on an unknown option and a missing value.
    """
    known = {name: condition for condition in contract.conditions for name in (condition.name, condition.alias) if name}
    given: dict[str, str] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        name = name if name in known else name.replace("-", "_")
        if not word.startswith("--") or name not in known:
            options = ", ".join(f"--{condition.name}" for condition in contract.conditions) or "none"
            raise InputError(
                f"unknown argument '{word}'; this network's conditions are: {options}; see --help for the rest"
            )
        if not equals and not queue:
            raise InputError(f"{word}: a value is missing; write {word}=VALUE")
        given[known[name].name] = text if equals else queue.pop(0)
    return {name: _value_from(known[name], text) for name, text in given.items()}


def _value_from(condition: Condition, text: str) -> Any:
    """One value, a list, the names of labels, or what stands in a .npy file."""
    if text.startswith("@"):
        return _array_from(condition, Path(text[1:]))
    if text in condition.labels:
        return text
    values: list[Any] = []
    for word in (part.strip() for part in text.split(",")):
        span = re.fullmatch(r"(\d{1,6})-(\d{1,6})", word) if condition.dtype.startswith("int") else None
        if span:
            values.extend(range(int(span[1]), int(span[2]) + 1))
        elif word in condition.labels:
            values.append(condition.labels.index(word))
        else:
            values.append(_number_from(condition, word))
    return values[0] if len(values) == 1 else values


def _number_from(condition: Condition, word: str) -> int | float:
    try:
        return int(word)
    except ValueError:
        pass
    try:
        return float(word)
    except ValueError:
        expected = f"one of {', '.join(condition.labels)}" if condition.labels else f"a number ({condition.dtype})"
        raise InputError(f"--{condition.name} '{word}': expected {expected}") from None


def _array_from(condition: Condition, path: Path) -> NDArray[np.generic]:
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or "not a .npy file of numbers"
        raise InputError(f"--{condition.name} @{path}: {reason}; expected an array written by numpy.save") from error
