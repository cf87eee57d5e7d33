"""What is typed becomes values: seeds, lists of integers, shapes, grids, ranges. Conditions: conditions.py."""

from __future__ import annotations

import re

from ...engine.errors import BackendError, InputError
from ...engine.machine import torch_without_cuda
from .options import shortened

LAST_SEED = 2**64 - 1
MOST_SEEDS = 1_000_000  # one command; a slip such as 0-99999999999 should not fill the memory


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
    """The same, if it is spelled like a device that torch was built for; whether the machine has it is seen later.

    Raises InputError, BackendError.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text):
        raise InputError(f"device '{shortened(text)}', expected auto, cpu, cuda or cuda:N")
    if text.startswith("cuda") and (problem := torch_without_cuda()):
        raise BackendError(f"device '{text}': {problem}; give --device cpu or --device auto")
    return text
