"""The fields of a contract, read from JSON and checked one by one. A misfit is an InputError of one line."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, cast

from .errors import InputError


def read_fields(what: str, kind: type, plain: Any) -> dict[str, Any]:
    """The arguments of the dataclass `kind` in JSON data, lists as tuples.

    Raises InputError for an unknown or a missing field.
    """
    if not isinstance(plain, Mapping):
        raise InputError(f"{what}: got {type(plain).__name__}, expected an object with named fields")
    known = {field.name for field in fields(kind)}
    for name in plain:
        if name not in known:
            raise InputError(f"{what}: unknown field '{name}'; known fields: {', '.join(sorted(known))}")
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
    if value not in choices:
        raise InputError(f"{what} {value!r}, expected one of {', '.join(choices)}")


def check_name(what: str, value: Any) -> None:
    if not (isinstance(value, str) and value.isidentifier()):
        raise InputError(f"{what}: the name {value!r} is no identifier (letters, digits, underscores); rename it")


def check_shape(what: str, value: Any) -> None:
    if not (
        isinstance(value, tuple) and all(is_integer(size) and size >= 1 for size in cast("tuple[Any, ...]", value))
    ):
        raise InputError(f"{what} {value!r}, expected a tuple of integers of at least 1, such as (3, 64, 64)")
