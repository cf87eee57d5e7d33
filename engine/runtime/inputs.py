"""What a batch of samples starts from, and the checks of what a caller gives for it.

Values on the host are looked at in every call. Values on a CUDA device stay there: to look at them, the host would wait
for everything queued before. Their shapes and dtypes are checked in every call, their values in the first of its kind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from ..contract.condition import Condition
from ..contract.contract import Contract
from ..errors import InputError
from .draws import Draws
from .noise import check_finite

if TYPE_CHECKING:
    from .pictures.masked import Masked

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

Values = NDArray[np.generic] | torch.Tensor  # [m, ..] on the host, or on a CUDA device as the caller gave them


@final
@dataclass(frozen=True, eq=False)
class Inputs:
    """What one batch of m samples starts from: seeds uint64 [m] or noise float32 [m, elements], one of them None.

    conditions: [m, ..] in the order of the contract. defaults: the places of those that were left to their default.
    Noise may be on the host or on the loop's device. draws: of a stochastic program, else None. masked: what is kept of
    a picture, on the loop's device; None without a mask.
    """

    seeds: NDArray[np.uint64] | None
    noise: torch.Tensor | None
    conditions: Sequence[Values]
    defaults: frozenset[int] = frozenset()
    draws: Draws | None = None
    masked: Masked | None = None

    @property
    def count(self) -> int:
        given = self.seeds if self.seeds is not None else self.noise
        return 0 if given is None else len(given)

    def part(self, which: slice) -> Inputs:
        """Some of the samples."""
        return Inputs(
            None if self.seeds is None else self.seeds[which],
            None if self.noise is None else self.noise[which],
            [values[which] for values in self.conditions],
            self.defaults,
            None if self.draws is None else self.draws.part(which),
            None if self.masked is None else self.masked.part(which),
        )


def check_noise(noise: Any, contract: Contract, device: torch.device) -> torch.Tensor:
    """The noise as contiguous float32 [n, elements], on the host or on the engine's CUDA device. Raises InputError."""
    try:
        given = noise.detach() if isinstance(noise, torch.Tensor) else torch.from_numpy(np.asarray(noise))
    except (TypeError, ValueError):
        raise InputError(f"noise of type {type(noise).__name__}, expected a tensor or an array of floats") from None
    if not given.is_floating_point() or tuple(given.shape[1:]) != contract.shape or given.ndim == 0:
        expected = f"floats of shape [n, {', '.join(map(str, contract.shape))}]"
        raise InputError(f"noise {list(given.shape)} of {given.dtype}, expected {expected}")
    if given.device != device:
        given = given.cpu()
    if not given.is_cuda:
        check_finite(given)
    return given.to(torch.float32).reshape(len(given), math.prod(contract.shape)).contiguous()


@final
class Conditions:
    """Checks what is given for the conditions of a contract; `device` is the engine's."""

    def __init__(self, contract: Contract, device: torch.device) -> None:
        self._contract = contract
        self._device = device
        self._defaults: dict[str, NDArray[Any]] = {}  # rows [*shape], made when first asked for

    def __call__(self, given: Mapping[str, Any], count: int) -> tuple[list[Values], frozenset[int]]:
        """Values [count, ..] in the order of the contract, and the places left to their default. Raises InputError."""
        named, called = self._contract.by_name(given), self._contract.called(given)
        conditions = self._contract.conditions
        values = [self._values(one, named.get(one.name), count, called.get(one.name)) for one in conditions]
        return values, frozenset(n for n, one in enumerate(conditions) if named.get(one.name) is None)

    def _values(self, condition: Condition, given: Any, count: int, called: str | None) -> Values:
        if given is None:
            if condition.name not in self._defaults:
                self._defaults[condition.name] = condition.values(None, 1)[0]
            return np.broadcast_to(self._defaults[condition.name], (count, *condition.shape))
        if isinstance(given, torch.Tensor) and given.device == self._device and stays_on_device(condition, given):
            return _on_device(condition, given.detach(), count, called or condition.name)
        return condition.values(on_host(given), count, called)


def stays_on_device(condition: Condition, given: torch.Tensor) -> bool:
    """Whether a CUDA tensor is of the condition's kind; another kind is converted, and so looked at, on the host."""
    if condition.dtype.startswith(("float", "bfloat")):
        return given.is_cuda and given.is_floating_point()
    return given.is_cuda and given.dtype in (*INTEGERS, *[torch.bool] * (condition.dtype == "bool"))


def _on_device(condition: Condition, given: torch.Tensor, count: int, called: str) -> torch.Tensor:
    """The tensor as [count, *shape] of its own dtype; nothing of it is read. Raises InputError."""
    shape = tuple(given.shape)
    if shape not in (condition.shape, (1, *condition.shape), (count, *condition.shape)):
        raise InputError(
            f"condition '{called}': got shape {list(shape)}, expected {list(condition.shape)} for all samples "
            f"or {[count, *condition.shape]}, one for each"
        )
    return given.expand(count, *condition.shape)


def look_at_device_values(contract: Contract, inputs: Inputs) -> None:
    """The checks of values that no call but the first of its kind makes. Waits for the device. Raises InputError."""
    if inputs.noise is not None and inputs.noise.is_cuda:
        check_finite(inputs.noise)
    for condition, values in zip(contract.conditions, inputs.conditions, strict=True):
        if isinstance(values, torch.Tensor):
            condition.values(on_host(values), inputs.count)


def on_host(value: Any) -> Any:
    """A tensor as an array; anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # NumPy has no bfloat16
