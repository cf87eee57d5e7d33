"""Noise by seed: a seed names one sample, whatever the batch, the bucket or the machine.

The numbers are those of `engine/philox.py`, Philox-4x32-10 and Box-Muller, keyed by the seed. On the CPU they come from
`_cpu.cpp`, 0.005 ms for 784 elements, or where it was not compiled from NumPy, the same bits. Other devices run
`kernels`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, shown
from ..philox import Seeds, fill_numpy, parse_seeds

try:
    from ._cpu import fill as fill_compiled
except ImportError:  # there was no C++ compiler when pfdiff was installed
    fill_compiled = None

if TYPE_CHECKING:
    import torch


def noise(seeds: Seeds, shape: Sequence[int], device: str | torch.device = "cpu") -> torch.Tensor:
    """Normal noise float32 [len(seeds), *shape] on `device`; `shape` is that of one sample.

    seeds: integers in [0, 2^64), one for each sample. The values on two devices agree to float32 rounding; on one
    they are equal bit for bit, alone or in any batch. Raises InputError.
    """
    import torch

    keys, size = parse_seeds(seeds), _check_shape(shape)
    if torch.device(device).type == "cpu":
        z = torch.empty((len(keys), *size), dtype=torch.float32, device="cpu")
        fill_noise(z.view(len(keys), math.prod(size)).numpy(), keys)
        return z
    from ...kernels.noise import noise as fill_on_device

    z = torch.empty((len(keys), *size), dtype=torch.float32, device=device)
    if len(keys):
        fill_on_device(z, torch.from_numpy(keys.view(np.int64)).to(device))
    return z


def _check_shape(shape: Any) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise InputError(f"shape {shown(shape)}, expected the sizes of one sample such as (3, 64, 64)") from None
    if any(size < 1 for size in sizes):
        raise InputError(f"shape {shown(shape)}, expected sizes of at least 1")
    return sizes


def fill_noise(z: NDArray[np.float32], seeds: NDArray[np.uint64], draw: int = 0) -> None:
    """Write draw `draw` of `seeds` uint64 [n] into `z` float32 [n, elements]; both are contiguous.

    Draw 0 is what sampling starts from, draw n + 1 what a stochastic sampler adds after evaluation n.
    """
    (fill_compiled or fill_numpy)(z, seeds, draw)


def check_finite(given: torch.Tensor) -> None:
    """Raises InputError for noise with NaN or infinity. On a CUDA device this waits."""
    if not bool(given.isfinite().all()):
        raise InputError("noise has NaN or infinite values, expected finite ones")
