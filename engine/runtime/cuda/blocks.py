"""Several tensors as parts of one block of bytes, so that one copy moves them all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

ALIGNMENT_BYTES = 256  # an address that TensorRT and vector loads take

Parts = Sequence[tuple[torch.dtype, tuple[int, ...]]]


def ends_of(parts: Parts) -> list[int]:
    """Where the bytes of each part end; each part begins at the next multiple of ALIGNMENT_BYTES."""
    ends: list[int] = []
    start = 0
    for dtype, shape in parts:
        ends.append(start + math.prod(shape) * dtype.itemsize)
        start = aligned(ends[-1])
    return ends


def aligned(size: int) -> int:
    """`size` bytes, rounded up to ALIGNMENT_BYTES."""
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def block_of(parts: Parts, device: torch.device | str, *, pinned: bool = False) -> torch.Tensor:
    """uint8 zeros for all parts."""
    return torch.zeros(aligned(ends_of(parts)[-1]), dtype=torch.uint8, device=device, pin_memory=pinned)


def views(block: torch.Tensor, parts: Parts) -> list[torch.Tensor]:
    """Each part as a tensor on the block's memory."""
    sizes = [math.prod(shape) * dtype.itemsize for dtype, shape in parts]
    return [
        block[end - size : end].view(dtype).view(shape)
        for end, size, (dtype, shape) in zip(ends_of(parts), sizes, parts, strict=True)
    ]
