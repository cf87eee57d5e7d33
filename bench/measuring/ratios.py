"""Ratios of times of one round: how blocks of rounds become a value and a spread.

A shared machine drifts by more than what is looked for, so ratios are tracked and never times. All are written so that
larger is worse for this project.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]  # milliseconds [rounds]

BLOCKS = 3  # contiguous stretches of rounds, each with a ratio of its own
WIDTH = 5.0  # standard errors, see `regression`
DIGITS = 5  # significant ones that are stored
OVERHEAD = "whole / bare evaluations"  # the ratio that is a field too, overhead_ratio


@final
@dataclass(frozen=True)
class Ratio:
    """A tracked ratio: its value and half the width of the interval it is known to."""

    value: float
    spread: float


def blocks(ours: Times, reference: Times) -> list[float]:
    """The ratio ours / reference of BLOCKS contiguous stretches of rounds, of lower quartiles; larger is worse for us.

    What else runs on the machine only ever adds time: the faster rounds are those that it left alone.
    """
    halves = (np.array_split(times, BLOCKS) for times in (ours, reference))
    return [float(np.percentile(one, 25) / np.percentile(other, 25)) for one, other in zip(*halves, strict=True)]


def ratio_of(found: Sequence[Sequence[float]]) -> Ratio:
    """What the ratios of blocks [passes][blocks] amount to."""
    every = np.concatenate([np.asarray(one, np.float64) for one in found])
    low, middle, high = np.percentile(every, (25, 50, 75)).tolist()
    return Ratio(middle, WIDTH * (high - low) / 1.349 / math.sqrt(len(found)))


def rounded(value: Any) -> Any:
    """Floats to DIGITS significant digits, however deep."""
    if isinstance(value, Mapping):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    return value
