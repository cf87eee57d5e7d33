"""Observations become conditions, samples become actions: what an engine that is a policy does around its schedule.

The observation encoder runs on the engine's device and stream, once a call, outside the schedule's graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from ..artifact import OBSERVATION_ENCODER, Artifact
from ..backends.choose import Beside
from ..contract.policy import OBSERVATION, PolicyContract
from ..errors import InputError
from .asked import Asked
from .inputs import on_host
from .later import LaterNetwork

Floats = NDArray[np.float32]


@final
class PolicyRuntime:
    """Of one engine; without a policy everything is handed on as it is."""

    def __init__(self, artifact: Artifact, beside: Beside) -> None:
        self._contract: PolicyContract | None = artifact.policy
        self._shapes = {one.name: one.shape for one in artifact.contract.conditions}
        contract = artifact.policy and artifact.policy.encoder
        self._encoder = LaterNetwork(artifact, beside, "the observation encoder", OBSERVATION_ENCODER, contract)
        if self._contract is not None:
            self._scale = torch.tensor(self._contract.scale, dtype=torch.float32, device=beside.device)
            self._offset = torch.tensor(self._contract.offset, dtype=torch.float32, device=beside.device)

    def stand_ins(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """`given`, placeholder values of the conditions, with observations of zeros in place of what they stand for."""
        policy = self._contract
        if policy is None:
            return given
        zeros = {one.name: np.zeros(one.shape, np.float32) for one in policy.observations}
        return {**{name: one for name, one in given.items() if name not in policy.conditions}, OBSERVATION: zeros}

    # In.
    def conditions(self, given: Mapping[str, Any], count: int) -> Mapping[str, Any]:
        """`given` with the conditions that its `observation` stands for. Raises InputError, BackendError."""
        policy = self._contract
        if policy is None or given.get(OBSERVATION) is None:
            return given
        if policy.encoder is None and not isinstance(given[OBSERVATION], Mapping):
            return given if policy.conditions == (OBSERVATION,) else self._renamed(given, policy)
        rest = {name: value for name, value in given.items() if name != OBSERVATION}
        if twice := [name for name in policy.conditions if name in rest]:
            raise InputError(f"got both {OBSERVATION} and {twice[0]}, expected one of them")
        parts = self._parts(given[OBSERVATION], policy, count)
        if policy.encoder is None:
            return {**rest, policy.conditions[0]: np.concatenate(_alike(parts), axis=-1)}
        packed = np.concatenate([one.reshape(len(one), -1) for one in _alike(parts)], axis=1)
        return {**rest, **self._split(self._encoder(torch.from_numpy(packed)).cpu().numpy(), policy)}

    def _renamed(self, given: Mapping[str, Any], policy: PolicyContract) -> Mapping[str, Any]:
        return {policy.conditions[0] if name == OBSERVATION else name: value for name, value in given.items()}

    def _parts(self, given: Any, policy: PolicyContract, count: int) -> list[Floats]:
        """Each observation float32 [1 or count, *shape], in the contract's order."""
        names = [one.name for one in policy.observations]
        if not isinstance(given, Mapping):
            if len(names) > 1:
                raise InputError(
                    f"observation: got {type(given).__name__}, expected a dictionary of {', '.join(names)}"
                )
            given = {names[0]: given}
        unknown = [name for name in given if name not in names]
        missing = [name for name in names if name not in given]
        if unknown or missing:
            wrong = f"'{unknown[0]}' is unknown" if unknown else f"'{missing[0]}' is missing"
            raise InputError(f"observation: {wrong}; this policy observes {', '.join(names)}")
        return [_checked(one.name, given[one.name], one.shape, count) for one in policy.observations]

    def _split(self, encoded: Floats, policy: PolicyContract) -> dict[str, Floats]:
        found, start = {}, 0
        for name in policy.conditions:
            size = math.prod(self._shapes[name])
            found[name] = encoded[:, start : start + size].reshape(len(encoded), *self._shapes[name])
            start += size
        return found

    # Out.
    def actions(self, samples: torch.Tensor) -> torch.Tensor:
        """Samples in units of the actions, in place."""
        return samples if self._contract is None else samples.mul_(self._scale).add_(self._offset)

    def asked(self, asked: Asked) -> Asked:
        """With a chunk of actions to start from as samples; what is no such chunk is left to fail later."""
        if self._contract is None or asked.image is None:
            return asked
        chunk = asked.image
        given = chunk.detach() if isinstance(chunk, torch.Tensor) else torch.from_numpy(np.array(chunk))
        if not given.is_floating_point() or given.shape[-1:] != self._scale.shape:
            return asked
        return replace(asked, image=(given.to(self._scale) - self._offset) / self._scale)

    def close(self) -> None:
        """Free the encoder."""
        self._encoder.close()


def _checked(name: str, given: Any, shape: tuple[int, ...], count: int) -> Floats:
    values = observation_values(name, given, shape)
    if values.shape not in (shape, (1, *shape), (count, *shape)):
        raise InputError(
            f"observation '{name}': got shape {list(values.shape)}, expected {list(shape)} for all samples or "
            f"{[count, *shape]}, one for each"
        )
    return values[None] if values.shape == shape else values


def observation_values(name: str, given: Any, shape: tuple[int, ...]) -> Floats:
    """Finite float32 values of any shape; `shape` is for the messages. Raises InputError."""
    try:
        values = np.asarray(on_host(given))
    except (ValueError, TypeError):
        raise InputError(f"observation '{name}': got lists of unequal lengths, expected {list(shape)}") from None
    if values.dtype.kind not in "fib":
        raise InputError(f"observation '{name}': got {values.dtype}, expected floats {list(shape)}, pictures in [0, 1]")
    with np.errstate(over="ignore"):  # what float32 does not hold becomes infinite
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"observation '{name}' has NaN or infinite values, expected finite ones")
    return values


def _alike(parts: list[Floats]) -> list[Floats]:
    """All with as many rows as the one with the most."""
    rows = max(map(len, parts))
    return [np.broadcast_to(one, (rows, *one.shape[1:])) for one in parts]
