"""An error of samples as it is recorded and said: a number of few seeds is one with a standard error.

    s_i = mean square of the difference of sample i,   error = sqrt(mean s)
    standard error = std(s) / (2 error sqrt(n)), by the delta method

It tells how far the error of other seeds may lie: beyond two of them in one of twenty cases. Where a few
samples carry most of the error, as where a sampler chooses between two modes, it is itself too small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Added(NamedTuple):
    """An RMS error, what it may be, and its standard error; None of a single sample."""

    error: float
    bound: float
    deviation: float | None

    @staticmethod
    def of(difference: Array, bound: float) -> Added:
        """Of differences [samples, ...]; infinite where one is not finite."""
        if not np.isfinite(difference).all():
            return Added(math.inf, bound, None)
        squares = np.square(difference.reshape(len(difference), -1), dtype=np.float64).mean(1)
        error = math.sqrt(float(squares.mean()))
        if len(squares) < 2:
            return Added(error, bound, None)
        wide = float(squares.std(ddof=1)) / math.sqrt(len(squares))
        return Added(error, bound, wide / (2 * error) if error else 0.0)

    @property
    def part(self) -> float:
        """Of the bound."""
        return self.error / self.bound

    @property
    def record(self) -> dict[str, float | None]:
        """As JSON data; an infinite bound is left out."""
        held = {"added": self.error, "standard_error": self.deviation}
        return held if math.isinf(self.bound) else {**held, "bound": self.bound}


def said(record: Mapping[str, Any]) -> str:
    """`0.021 ± 0.001` of a record; an engine of before standard errors has the number alone."""
    deviation = record.get("standard_error")
    return f"{record['added']:.2g}" + (f" ± {deviation:.1g}" if deviation is not None else "")
