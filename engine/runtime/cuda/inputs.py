"""Seeds and conditions of a captured batch: one block of bytes on the device, filled by one copy a call.

The host writes them into a block of pinned memory of the same layout. The copy is asynchronous, so the host's block may
be written again only when the call that read it is done: there are several, used in turn.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, final

import torch
from numpy.typing import NDArray

from ...contract.contract import Contract
from ...tensors import TORCH_DTYPES, array_of, fill, fill_rows, lasting
from ..inputs import Inputs
from .blocks import Parts, block_of, ends_of, views

MOST_SLOTS = 8  # calls that the host may be ahead of the device before one waits


@final
@dataclass(frozen=True, eq=False)
class InputBlock:
    """Seeds int64 [bucket] and conditions [bucket, ..] as parts of one block, `ends` where each condition's bytes end.

    data: uint8, all of it.
    """

    data: torch.Tensor
    seeds: torch.Tensor
    conditions: tuple[torch.Tensor, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, contract: Contract, bucket: int, device: torch.device | str, *, pinned: bool = False) -> InputBlock:
        """A block of zeros."""
        parts: Parts = [
            (torch.int64, (bucket,)),
            *((TORCH_DTYPES[one.dtype], (bucket, *one.shape)) for one in contract.conditions),
        ]
        data = block_of(parts, device, pinned=pinned)
        seeds, *conditions = views(data, parts)
        return cls(data, seeds, tuple(conditions), tuple(ends_of(parts)[1:]))


@final
@dataclass(eq=False)
class Slot:
    """A block of the host. `done`: the event after which it may be written again; None when nothing reads it."""

    block: InputBlock
    done: Any = None
    seeds: NDArray[Any] = field(init=False)
    conditions: tuple[NDArray[Any] | None, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.seeds = self.block.seeds.numpy()
        self.conditions = tuple(array_of(one) for one in self.block.conditions)


@final
class InputRing:
    """The device's block of one batch and the host's blocks that fill it."""

    def __init__(self, contract: Contract, bucket: int, device: torch.device) -> None:
        self.block = InputBlock.of(contract, bucket, device)
        self._contract = contract
        self._pinned = device.type == "cuda"
        self._slots: deque[Slot] = deque()
        self._defaults: frozenset[int] = frozenset()  # places that hold their default on the device

    def load(self, inputs: Inputs) -> Slot:
        """Fill the device's block on the current stream; rows beyond the samples repeat the last.

        Conditions that hold their default already are not copied again; those on the device are copied there. The
        caller sets `done` of the slot when it has launched what reads it.
        """
        slot = self._slot()
        on_host = [(n, one) for n, one in enumerate(inputs.conditions) if not isinstance(one, torch.Tensor)]
        changed = [n for n, _ in on_host if n not in self._defaults & inputs.defaults]
        drawn = inputs.draws.seeds if inputs.draws is not None else None
        seeds = inputs.seeds if inputs.seeds is not None else drawn
        if seeds is not None or changed:
            end = self.block.ends[max(changed)] if changed else self.block.seeds.nbytes
            if seeds is not None:
                fill_rows(slot.block.seeds, slot.seeds, seeds.view("int64"))
            for n, values in on_host:
                if self.block.ends[n] <= end:
                    fill_rows(slot.block.conditions[n], slot.conditions[n], values)
            self.block.data[:end].copy_(slot.block.data[:end], non_blocking=True)
        for n, values in enumerate(inputs.conditions):
            if isinstance(values, torch.Tensor):
                fill(self.block.conditions[n], values)
        self._defaults = inputs.defaults
        return slot

    def _slot(self) -> Slot:
        """One that nothing reads: the oldest if its call is done, else a new one, and of MOST_SLOTS the oldest."""
        full = len(self._slots) == MOST_SLOTS
        if self._slots and (full or self._slots[0].done is None or self._slots[0].done.query()):
            slot = self._slots.popleft()
            if full and slot.done is not None:
                slot.done.synchronize()
        else:
            with lasting():
                slot = Slot(InputBlock.of(self._contract, len(self.block.seeds), "cpu", pinned=self._pinned))
        self._slots.append(slot)
        return slot
