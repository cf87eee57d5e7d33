"""Noise by seed in NumPy: Philox-4x32-10 (Salmon et al., SC 2011) and Box-Muller, a draw of each evaluation its own.

Element e of draw c of a seed has the key (seed mod 2^32, seed >> 32) and the counter (e mod 2^32, e >> 32, c, 0):

    u_1 = (r_0 + 1/2) 2^-32,  u_2 = (r_1 + 1/2) 2^-32,  z = sqrt(-2 ln u_1) cos(2 pi u_2)

Draw 0 is the noise that sampling starts from, here in float64 and rounded once; a GPU computes it in float32. Draw
n + 1 is xi_n, which a stochastic sampler adds after its evaluation n, counted from 0. It is computed in float32 on
every device, operation by operation as in kernels/noise.py, so its bits are the same everywhere. Blocks stay in the
cache: 0.07 ms for 784 elements.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, shown

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


def fill_numpy(z: NDArray[np.float32], seeds: NDArray[np.uint64], draw: int = 0) -> None:
    """Write draw `draw` of `seeds` uint64 [n] into `z` float32 [n, elements]; what `_cpu.cpp` computes, bit for bit."""
    samples, elements = z.shape
    rows = max(1, BLOCK // max(elements, 1))
    for first in range(0, samples, rows):
        keys = seeds[first : first + rows, None]
        for start in range(0, elements, BLOCK):
            block = z[first : first + rows, start : start + BLOCK]
            words = _philox(np.arange(start, start + block.shape[1], dtype=np.uint64), keys, draw)
            (_box_muller_in_float32 if draw else _box_muller)(block, *words)


def _philox(
    element: NDArray[np.uint64], keys: NDArray[np.uint64], draw: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Words r_0, r_1 uint64 [n, e] of Philox-4x32-10 for `element` [e], `keys` [n, 1] and `draw` below 2^32.

    Both halves of a round are one array operation: `even` holds c_0 and c_2, `odd` c_1 and c_3. What a product gives
    goes to the other half; in place of moving it, the halves change places: c_0 is at 1 after the first round, at 0
    after the second.
    """
    round_keys = _round_keys(keys)
    shape = (2, len(keys), len(element))
    even, odd, high = (np.empty(shape, np.uint64) for _ in range(3))

    # The first round: c_3 is zero, c_2 is the draw, c_1 is zero below 2^32 elements.
    product, drawn = MULTIPLIERS[0] * (element & WORD), MULTIPLIERS[1] * np.uint64(draw)
    even[0], even[1] = product >> HALF, (element >> HALF) ^ (drawn >> HALF)
    even ^= round_keys[0]
    odd[0], odd[1] = product & WORD, drawn & WORD
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


# ln(1 + f) = f - f^2 / 2 + f^3 P(f), sine and cosine: the polynomials of Cephes' logf, sinf and cosf (S. Moshier).
LOGARITHM = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1),
    *(2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)


def _box_muller_in_float32(z: NDArray[np.float32], r_0: NDArray[np.uint64], r_1: NDArray[np.uint64]) -> None:
    """`normal` of kernels/noise.py, which explains it: its operations in their order, each rounded to float32."""
    # ln u_1 = k ln 2 + ln(1 + f); near u_1 = 1 from 1 - u_1.
    upper = r_0 >= 0x80000000
    x = np.where(upper, r_0 ^ WORD, r_0).astype(np.float32) + np.float32(0.5)
    bits = x.view(np.int32)
    exponent = (bits - np.int32(0x3F3504F3)) >> 23
    mantissa = (bits - (exponent << 23)).view(np.float32)
    rest = x * np.float32(2.3283064365386963e-10)
    halved = rest > np.float32(0.29289321881345254)
    f = np.where(upper, np.where(halved, 1 - 2 * rest, -rest), mantissa - 1)
    k = np.where(upper, np.where(halved, -1, 0), exponent - 32).astype(np.float32)
    y = np.full_like(f, LOGARITHM[0])
    for coefficient in LOGARITHM[1:]:
        y *= f
        y += np.float32(coefficient)
    square = f * f
    y = y * f * square - np.float32(2.12194440e-4) * k - np.float32(0.5) * square
    radius = np.sqrt(-2 * (np.float32(0.693359375) * k + (f + y)))

    # cos(2 pi u_2): the nearest quarter turn, then |angle| <= pi / 4.
    words = r_1.astype(np.uint32)
    quarter = (words + np.uint32(0x20000000)) >> 30
    remainder = (words - (quarter << 30)).view(np.int32)
    angle = (remainder.astype(np.float32) + np.float32(0.5)) * np.float32(1.4629180792671596e-9)
    a = angle * angle
    sine = ((np.float32(-1.9515295891e-4) * a + np.float32(8.3321608736e-3)) * a - np.float32(1.6666654611e-1)) * a
    cosine = (np.float32(2.443315711809948e-5) * a - np.float32(1.388731625493765e-3)) * a
    cosine = (cosine + np.float32(4.166664568298827e-2)) * a * a - np.float32(0.5) * a + 1
    wave = np.where(quarter & 1, sine * angle + angle, cosine)
    z[...] = radius * wave * np.where((quarter + 1) & 2, np.float32(-1), np.float32(1))  # quarters 1, 2: -sin, -cos
