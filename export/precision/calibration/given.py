"""What a user gives to calibrate eight bits with: prompts, values of conditions, observations of a policy.

    pfdiff build net.onnx ... --precision int8 --calibrate-conditions pictures.npz
    pfdiff.build(network, 8, precision="int8", calibrate_conditions={"picture": array})       [m, *shape]

Every second row calibrates, the others check. Among these m, seed s has row s mod m, as in a bulk run
(engine/contract/seed_conditions.py). In place of the conditions that a policy's observation encoder makes, its
observations are given.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from ....engine.contract.contract import Contract
from ....engine.contract.policy import PolicyContract
from ....engine.contract.seed_conditions import condition_table
from ....engine.errors import InputError, shown
from ....engine.files.array_files import FORMATS, array_names, read_array
from ....engine.runtime.policy import observation_values
from ..prompts import USUAL

Array = NDArray[Any]
WORD = "calibrate_conditions"
MOST_ROWS = 1000  # of observations: each is held encoded


@final
@dataclass(frozen=True, eq=False)
class Given:
    """prompts: of a pipeline. conditions, observations: by name, [m, *shape]."""

    prompts: tuple[str, ...] = USUAL
    conditions: Mapping[str, Array] = field(default_factory=dict)
    observations: Mapping[str, Array] = field(default_factory=dict)

    @property
    def digest(self) -> str | None:
        """sha256 hex of the arrays; None without any."""
        if not self.conditions and not self.observations:
            return None
        found = hashlib.sha256()
        for name, values in sorted({**self.conditions, **self.observations}.items()):
            found.update(f"{name} {values.dtype} {values.shape} ".encode())
            found.update(np.ascontiguousarray(values).tobytes())
        return found.hexdigest()


def given_values(
    given: Mapping[str, Any] | str | os.PathLike[str] | None,
    contract: Contract,
    policy: PolicyContract | None,
    encoded: tuple[str, ...],
    prompts: tuple[str, ...],
) -> Given:
    """Arrays by name, or a file of them, checked. encoded: conditions that come from prompts. Raises InputError."""
    if given is None:
        return Given(prompts)
    try:
        arrays = dict(given) if isinstance(given, Mapping) else _read(given, contract, policy)
        observed = {one.name: one.shape for one in (policy.observations if policy else ())}
        seen = {name: value for name, value in arrays.items() if name in observed}
        named = contract.by_name({name: value for name, value in arrays.items() if name not in observed})
        if taken := [name for name in named if name in encoded]:
            raise InputError(f"{taken[0]} is made of prompts; give them by calibrate_prompts (--calibrate-prompts)")
        if seen and (missing := [name for name in observed if name not in seen]):
            raise InputError(f"observation '{missing[0]}' is missing; this policy observes {', '.join(observed)}")
        if twice := [name for name in named if seen and policy and name in policy.conditions]:
            raise InputError(f"got both observations and {twice[0]}, which they stand for; expected either")
        tables = {one.name: condition_table(one, named[one.name]) for one in contract.conditions if one.name in named}
        return Given(prompts, tables, _observations(seen, observed))
    except InputError as error:
        raise InputError(f"{WORD}: {error}") from None


def _read(path: str | os.PathLike[str], contract: Contract, policy: PolicyContract | None) -> dict[str, Array]:
    """By name; what has no name in the file is the one thing that has no values of its own."""
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"got {shown(path)}, expected arrays by name, or a file ({', '.join(FORMATS)})")
    if Path(path).suffix.lower() != ".npy":
        if not (held := array_names(path)):
            raise InputError(f"'{Path(path)}' holds no arrays")
        return {name: read_array(path, (name,)) for name in held}
    names = tuple(one.name for one in policy.observations) if policy else ()
    names = names or tuple(one.name for one in contract.conditions if one.default is None and not one.labels)
    names = names or (contract.conditions[0].name,) if len(contract.conditions) == 1 else names
    if len(names) != 1:
        why = f"is {' or '.join(names)}" if names else "is any condition, since none is without values"
        raise InputError(f"'{Path(path)}' has one array and does not say whether it {why}; write .npz or .safetensors")
    return {names[0]: read_array(path)}


def _observations(given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Float32 [m, *shape] of each, the same m for all."""
    found: dict[str, Array] = {}
    for name, shape in shapes.items() if given else ():
        values = observation_values(name, given[name], shape)
        values = values[None] if values.shape == shape else values
        if values.shape[1:] != shape or not 1 <= len(values) <= MOST_ROWS:
            raise InputError(
                f"observation '{name}': got shape {list(values.shape)}, expected [m, {', '.join(map(str, shape))}], "
                f"m in 1..{MOST_ROWS}"
            )
        found[name] = values
    if len(counts := {len(one) for one in found.values()}) > 1:
        raise InputError(f"observations of {sorted(counts)} rows, expected as many of each")
    return found
