"""Noise by seed: a seed names one sample, whatever the batch, the bucket or the machine.

Element e of the sample of a seed is Box-Muller of the first two words of Philox-4x32-10 (Salmon et al., SC 2011) with
key (seed mod 2^32, seed >> 32) and counter (e mod 2^32, e >> 32, 0, 0):

    u_1 = (r_0 + 1/2) 2^-32,  u_2 = (r_1 + 1/2) 2^-32,  z = sqrt(-2 ln u_1) cos(2 pi u_2)     in float64, rounded once

On the CPU this is `_cpu.cpp`, 0.005 ms for 784 elements, or where it was not compiled the same bits from NumPy over
blocks that stay in the cache, 0.07 ms. Other devices run `kernels`.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, shown

try:
    from ._cpu import fill as fill_compiled
except ImportError:  # there was no C++ compiler when pfdiff was installed
    fill_compiled = None

if TYPE_CHECKING:
    import torch

ROUNDS = 10
MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)
WEYLS = np.array([0x9E3779B9, 0xBB67AE85], np.uint64)
WORD = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
PLACED_MULTIPLIERS = MULTIPLIERS[:, None, None], MULTIPLIERS[::-1, None, None]  # for c_0 first, for c_2 first
PLACED_STEPS = WEYLS * np.arange(ROUNDS, dtype=np.uint64)[:, None]
PLACED_STEPS[::2] = PLACED_STEPS[::2, ::-1].copy()
PLACED_STEPS = PLACED_STEPS[..., None, None]
MOST_SEEDS = 1 << 24  # of one call: range(10**12) is a slip, and would fill the memory before it fails
BLOCK = 8192  # elements: ten uint64 temporaries of 64 KiB stay in a 1 MiB second-level cache

Seeds = Iterable[int]


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


def parse_seeds(seeds: Any) -> NDArray[np.uint64]:
    """The seeds as uint64 [n]. Raises InputError for what is no sequence of integers in [0, 2^64)."""
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        one = shown(seeds)
        raise InputError(f"seeds={one}, expected a sequence: range({one}) for {one} samples, [{one}] for one")
    if isinstance(seeds, (bool, str, bytes)) or not hasattr(seeds, "__iter__"):
        raise InputError(f"seeds of type {type(seeds).__name__}, expected a sequence of integers such as range(8)")
    if isinstance(seeds, range):
        return _seeds_of_range(seeds)
    if hasattr(seeds, "__len__") and len(seeds) > MOST_SEEDS:
        raise InputError(f"{len(seeds)} seeds, expected at most {MOST_SEEDS}; sample them in parts")
    found: list[int] = []
    for seed in itertools.islice(seeds, MOST_SEEDS + 1):
        try:
            number = operator.index(seed)
        except TypeError:
            raise InputError(f"seed {shown(seed)}, expected an integer in 0 .. 2^64 - 1") from None
        if isinstance(seed, bool) or not 0 <= number < 1 << 64:
            raise InputError(f"seed {shown(seed)}, expected an integer in 0 .. 2^64 - 1")
        found.append(number)
    if len(found) > MOST_SEEDS:
        raise InputError(f"more than {MOST_SEEDS} seeds, expected at most that; sample them in parts")
    return np.array(found, dtype=np.uint64)


def _seeds_of_range(seeds: range) -> NDArray[np.uint64]:
    """The seeds of a range, which may promise more of them than there is memory for."""
    if not seeds:
        return np.zeros(0, np.uint64)
    for seed in (seeds[0], seeds[-1]):
        if not 0 <= seed < 1 << 64:
            raise InputError(f"seed {shown(seed)}, expected an integer in 0 .. 2^64 - 1")
    count = (seeds[-1] - seeds[0]) // seeds.step + 1  # `len` fails beyond 2^63
    if count > MOST_SEEDS:
        raise InputError(
            f"seeds={shown(seeds)}: {shown(count)} seeds, expected at most {MOST_SEEDS}; sample them in parts"
        )
    return np.fromiter(seeds, np.uint64, count)


def _check_shape(shape: Any) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise InputError(f"shape {shown(shape)}, expected the sizes of one sample such as (3, 64, 64)") from None
    if any(size < 1 for size in sizes):
        raise InputError(f"shape {shown(shape)}, expected sizes of at least 1")
    return sizes


def fill_noise(z: NDArray[np.float32], seeds: NDArray[np.uint64]) -> None:
    """Write the noise of `seeds` uint64 [n] into `z` float32 [n, elements]; both are contiguous."""
    (fill_compiled or fill_numpy)(z, seeds)


def fill_numpy(z: NDArray[np.float32], seeds: NDArray[np.uint64]) -> None:
    """What `_cpu.cpp` computes, the same bits."""
    samples, elements = z.shape
    rows = max(1, BLOCK // max(elements, 1))
    for first in range(0, samples, rows):
        keys = seeds[first : first + rows, None]
        for start in range(0, elements, BLOCK):
            block = z[first : first + rows, start : start + BLOCK]
            _box_muller(block, *_philox(np.arange(start, start + block.shape[1], dtype=np.uint64), keys))


def _philox(element: NDArray[np.uint64], keys: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Words r_0, r_1 uint64 [n, e] of Philox-4x32-10 for `element` [e] and `keys` [n, 1].

    Both halves of a round are one array operation: `even` holds c_0 and c_2, `odd` c_1 and c_3. What a product gives
    goes to the other half; in place of moving it, the halves change places: c_0 is at 1 after the first round, at 0
    after the second.
    """
    round_keys = _round_keys(keys)
    shape = (2, len(keys), len(element))
    even, odd, high = np.empty(shape, np.uint64), np.zeros(shape, np.uint64), np.empty(shape, np.uint64)

    # The first round: c_2 and c_3 are zero, c_1 is zero below 2^32 elements.
    product = MULTIPLIERS[0] * (element & WORD)
    even[0], even[1] = product >> HALF, element >> HALF
    even ^= round_keys[0]
    odd[0] = product & WORD
    for n in range(1, ROUNDS - 1):
        even *= PLACED_MULTIPLIERS[n % 2]
        np.right_shift(even, HALF, out=high)
        high ^= odd[::-1]
        high ^= round_keys[n]
        np.bitwise_and(even, WORD, out=odd)
        even, high = high, even

    # The last round: only what becomes of c_2 is asked for.
    product, r_0 = even[0], high[0]
    product *= MULTIPLIERS[1]
    np.right_shift(product, HALF, out=r_0)
    r_0 ^= odd[1]
    r_0 ^= round_keys[-1, 0]
    product &= WORD
    return r_0, product


def _round_keys(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """What each round adds to c_0 and c_2 [rounds, 2, n, 1], placed as they are after it."""
    placed = np.empty((ROUNDS, 2, *keys.shape), np.uint64)
    placed[::2, 1] = placed[1::2, 0] = keys
    placed[::2, 0] = placed[1::2, 1] = keys >> HALF
    placed += PLACED_STEPS
    placed &= WORD
    return placed


def _box_muller(z: NDArray[np.float32], r_0: NDArray[np.uint64], r_1: NDArray[np.uint64]) -> None:
    radius = r_0.astype(np.float64)
    radius += 0.5
    radius *= 2.0**-32  # exact, like the sum before: 33 bits
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    angle = r_1.astype(np.float64)
    angle += 0.5
    angle *= 2.0**-32 * (2.0 * math.pi)  # one rounding, a power of two makes none
    np.cos(angle, out=angle)
    np.multiply(radius, angle, out=z)  # in float64, then the one rounding to float32
