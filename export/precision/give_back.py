"""Which layers are quantised: all whose error can be afforded, the costly ones for what they gain given back to float.

Errors of layers add up in squares as long as they are small. Alone, each layer has an error e_i of whole samples; the
layers with the largest e_i^2 per multiplication saved are given back first, until the sum that is left is within the
bound. The sum is then measured, not believed: while samples still differ by more, further layers go back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
# Flags bool [layers] -> error of whole samples with these layers quantised, as a part of the bound.
Measure = Callable[[Array], float]

SAFETY = 0.9  # of the bound: what is aimed at
TIGHTER = 0.8  # the aim after each measurement that is still beyond the bound


@final
@dataclass(frozen=True, eq=False)
class Chosen:
    """flags: bool [layers], the quantised ones. alone: the errors of single layers, where they had to be measured."""

    flags: Array
    alone: Array | None
    all_quantised: float


def choose(
    costs: Sequence[float], alone: Callable[[], Measure], together: Measure, say: Callable[[int, int], None]
) -> Chosen:
    """The layers to quantise. costs: multiplications of each layer.

    together: errors as parts of the bound. alone: makes a measure of single layers, where they must be told apart, on
    other inputs, and to any scale while all samples are finite. say: layers measured, of all.
    """
    count = len(costs)
    flags = np.ones(count, bool)
    everything = together(flags)
    if everything <= 1:
        return Chosen(flags, None, everything)
    errors, measure = np.zeros(count), alone()
    for layer in range(count):
        only = np.zeros(count, bool)
        only[layer] = True
        errors[layer] = measure(only)
        say(layer + 1, count)
    squares = np.where(np.isfinite(errors), errors, np.inf) ** 2
    order = np.argsort(-squares / np.maximum(costs, 1e-30), kind="stable")
    total = math.sqrt(float(squares.sum()))
    # How far the sum of squares is from what was measured together, where both are finite.
    scale = everything / total if math.isfinite(everything) and 0 < total < math.inf else 1.0
    aim, position = SAFETY, 0
    while position < count:
        more = True  # a layer at least, or the same would be measured again
        while position < count and more:
            flags[order[position]] = False
            position += 1
            more = scale * math.sqrt(_left(squares, flags)) > aim
        if not flags.any() or together(flags) <= 1:
            break
        aim *= TIGHTER
    return Chosen(flags, errors, everything)


def _left(squares: Array, flags: Array) -> float:
    return float(squares[flags].sum())
