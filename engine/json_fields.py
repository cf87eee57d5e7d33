"""JSON that anybody may have written: read within bounds, its fields checked one by one.

A misfit is an InputError of one line. The bounds are those of the C++ reader: 32 levels, 4096 fields of an object,
2^21 values, no name twice, finite numbers only.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, cast

from .errors import InputError, first_line, shown

MOST_LEVELS = 32
MOST_FIELDS = 4096
MOST_VALUES = 1 << 21
LONGEST_NAME = 256
MOST_SIZES, MOST_ELEMENTS = 8, 1 << 40  # of a sample


# Reading.
def parse_json(data: bytes, *, finite: bool = True) -> Any:
    """The content of a JSON file. Raises InputError: no JSON, or beyond the bounds above.

    finite: NaN and Infinity are refused, which JSON does not have and Python writes.
    """
    # Before parsing: an array of 16 MiB of "0," would take 500 MB. Commas in strings count too; engines have few.
    if sum(map(data.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise InputError(f"more than {MOST_VALUES} values")
    try:
        content = json.loads(data, object_pairs_hook=_object, parse_constant=_not_finite if finite else None)
    except InputError:
        raise
    except RecursionError:
        raise InputError(f"more than {MOST_LEVELS} levels") from None
    except ValueError as error:  # among them what is no UTF-8
        raise InputError(f"not JSON ({first_line(error)[:80]})") from None
    level = [content]
    for _ in range(MOST_LEVELS + 1):
        open_here = [one for one in level if isinstance(one, (dict, list))]
        if not open_here:
            return content
        level = [value for one in open_here for value in (one.values() if isinstance(one, dict) else one)]
    raise InputError(f"more than {MOST_LEVELS} levels")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(pairs) > MOST_FIELDS:
        raise InputError(f"an object has more than {MOST_FIELDS} fields")
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise InputError(f"the name {shown(next(name for name in names if names.count(name) > 1))} stands twice")
    return found


def _not_finite(word: str) -> Any:
    raise InputError(f"the number {word}, which JSON does not have")


def read_fields(what: str, kind: type, plain: Any) -> dict[str, Any]:
    """The arguments of the dataclass `kind` in JSON data, lists as tuples.

    Raises InputError for an unknown or a missing field.
    """
    if not isinstance(plain, Mapping):
        raise InputError(f"{what}: got {type(plain).__name__}, expected an object with named fields")
    known = {field.name for field in fields(kind)}
    for name in plain:
        if name not in known:
            raise InputError(f"{what}: unknown field {shown(name[:24])}; known fields: {', '.join(sorted(known))}")
    for field in fields(kind):
        if field.default is MISSING and field.name not in plain:
            raise InputError(f"{what}: the field '{field.name}' is missing")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}


def as_json(value: Any) -> Any:
    """A field as JSON data: a tuple becomes a list."""
    return list(value) if isinstance(value, tuple) else value


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """A finite number that float64 holds: integers of 400 digits are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_strings(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(one, str) for one in cast("tuple[Any, ...]", value))


def check_choice(what: str, value: Any, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{what} {shown(value)}, expected one of {', '.join(choices)}")


def check_name(what: str, value: Any) -> None:
    if not (isinstance(value, str) and value.isidentifier() and len(value) <= LONGEST_NAME):
        raise InputError(f"{what}: the name {shown(value)} is no identifier (letters, digits, underscores); rename it")


def check_text(what: str, value: Any) -> None:
    """Raises InputError unless `value` is a string of 1 to 256 characters that are not all blank."""
    if not (isinstance(value, str) and value.strip() and len(value) <= LONGEST_NAME):
        raise InputError(f"{what} {shown(value)}, expected 1 to {LONGEST_NAME} characters")


def check_shape(what: str, value: Any) -> None:
    """Raises InputError unless `value` is a tuple of at most 8 sizes, whose product is at most 2^40."""
    sizes: tuple[Any, ...] = value if isinstance(value, tuple) else ()
    if not isinstance(value, tuple) or not all(is_integer(size) and size >= 1 for size in sizes):
        raise InputError(f"{what} {shown(value)}, expected a tuple of integers of at least 1, such as (3, 64, 64)")
    if len(sizes) > MOST_SIZES or math.prod(sizes) > MOST_ELEMENTS:
        raise InputError(f"{what} {shown(value)}, expected at most {MOST_SIZES} sizes and 2^40 elements")
