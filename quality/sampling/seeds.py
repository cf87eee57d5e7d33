"""Which seeds a search draws: those that choose and those that judge never meet."""

from __future__ import annotations

from ...engine.errors import InputError, shown

SEED_STRIDE = 1 << 20  # seeds of one role: calibration from seed * stride, held-out seeds from HELD_OUT above it
HELD_OUT = 1 << 40
LARGEST = (1 << 43) - 1  # of `seed`: those drawn stay below 2^64


def chosen_seeds(seed: int, calibration: int, held_out: int) -> list[int]:
    """Seeds of the two roles, one after the other; other calibration sizes begin with the same seeds.

    Raises InputError.
    """
    if not 0 <= seed <= LARGEST:
        raise InputError(f"seed {shown(seed)}, expected an integer in 0 .. {LARGEST}")
    first = seed * SEED_STRIDE
    return [*range(first, first + calibration), *range(HELD_OUT + first, HELD_OUT + first + held_out)]
