"""Which condition values the sample of a seed has: row s mod m of a table for seed s.

A condition's table is [m, *shape]: m values that a caller gave, or one. Not given, it is each of the labels in turn
where the condition has labels, else its default. With `--label 3,5,7`, seed 0 has label 3 and seed 4 has label 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .condition import Condition, as_array, place_of
from .contract import Contract


def condition_tables(contract: Contract, given: Mapping[str, Any] | None) -> dict[str, NDArray[Any]]:
    """The table [m, *shape] of every condition of the contract.

    given: by name, one value, a label's name, or a list or array of m of them. What is not given takes each of its
    labels in turn when it has names for them, else its default. Raises InputError.
    """
    named = contract.by_name(given or {})
    called = contract.called(given or {})
    return {one.name: condition_table(one, named.get(one.name), called.get(one.name)) for one in contract.conditions}


def rows(tables: Mapping[str, NDArray[Any]], seeds: NDArray[np.uint64]) -> dict[str, NDArray[Any]]:
    """The conditions [n, *shape] of the samples of `seeds`: row s mod m of each table."""
    return {name: table[seeds % np.uint64(len(table))] for name, table in tables.items()}


def condition_table(condition: Condition, given: Any, called: str | None = None) -> NDArray[Any]:
    """The table [m, *shape] of a condition: of what is given, else of its labels or its default. Raises InputError."""
    if given is None and condition.labels:
        given = list(condition.labels)
    called = called or condition.alias or condition.name
    shape: tuple[int, ...] = () if given is None or isinstance(given, str) else as_array(given, called).shape
    count = next(iter(shape)) if len(shape) > len(condition.shape) else 1
    if not count:
        raise InputError(f"{place_of(called)}: got no values, expected at least one")
    return condition.values(given, count, called)


def conditions_of(contract: Contract, given: Mapping[str, Any] | None, seeds: Sequence[int]) -> list[NDArray[Any]]:
    """Arrays [n, *shape] of every condition of the contract, for n seeds, as a bulk run has them. Raises InputError."""
    found = rows(condition_tables(contract, given), np.array(seeds, np.uint64))
    return [found[one.name] for one in contract.conditions]
