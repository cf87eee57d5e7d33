"""What only some batches on a CUDA device have: noise that the caller gives for the way, the network's output where a
program takes it beside the clipped x0, and what a mask keeps.

Static buffers like all others. A batch without them has none and launches the kernels that it always did.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch

from ....kernels.kept import Kept
from ...contract.contract import Contract
from ...tensors import fill
from ..inputs import Inputs
from ..loop import Tables


@final
@dataclass(frozen=True, eq=False)
class StaticExtras:
    """xi float32 [K, bucket, elements], the draws of a program; kept: picture and mask of a bucket; None without.

    output: float32 [bucket * elements], the network's output in the states' dtype, for a program that adds it.
    """

    xi: torch.Tensor | None = None
    kept: Kept | None = None
    output: torch.Tensor | None = None

    @classmethod
    def of(
        cls, tables: Tables, noise: torch.Tensor, factors: torch.Tensor | None, dtype: torch.dtype, *, given: bool
    ) -> StaticExtras:
        """Zeros. noise float32 [bucket, elements]: the buffer of what sampling starts from. factors: of a mask.

        dtype: of the network's output.
        """
        shape, device = tuple(noise.shape), noise.device
        xi = torch.zeros((len(tables.draws), *shape), dtype=torch.float32, device=device) if given else None
        converted = tables.U is not None and dtype != torch.float32
        output = torch.zeros(noise.numel(), dtype=torch.float32, device=device) if converted else None
        if factors is None:
            return cls(xi, None, output)
        picture = torch.zeros(shape, dtype=torch.float32, device=device)
        mask = torch.zeros(shape, dtype=torch.uint8, device=device)
        return cls(xi, Kept(picture, noise, mask, factors), output)

    @staticmethod
    def bytes_needed(contract: Contract, tables: Tables, *, given: bool, masked: bool) -> int:
        """Device bytes a sample."""
        return math.prod(contract.shape) * (4 * len(tables.draws) * given + 5 * masked + 4 * (tables.U is not None))

    def load(self, inputs: Inputs) -> None:
        """Fill the buffers on the current stream; rows beyond the samples repeat the last."""
        if self.kept is not None and inputs.masked is not None:
            fill(self.kept.picture, inputs.masked.picture)
            fill(self.kept.mask, inputs.masked.mask)
        if self.xi is not None and inputs.draws is not None and inputs.draws.given is not None:
            for buffer, draw in zip(self.xi, inputs.draws.given, strict=True):
                fill(buffer, draw)

    def added(self, tables: Tables, row: int, out: torch.Tensor) -> torch.Tensor | None:
        """The noise given after evaluation `row`, or the output itself; None where there is neither."""
        if tables.U is not None and row < tables.nfe:
            return out.view(-1) if self.output is None else self.output.copy_(out.view(-1))
        return None if self.xi is None or row not in tables.draws else self.xi[tables.draws.index(row)]
