"""The calls of a bounded measurement: programs run on the network itself, in float32, every call counted.

At most 600 calls and 30 seconds. What is planned takes 70 % of the seconds, by the quickest of a few calls at first
and by the usual one later: on a busy machine single calls take ten times as long.
"""

from __future__ import annotations

import math
import statistics
import time
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor

from ...engine.compiler.program import Program
from ...engine.compiler.schedule import parse_schedule
from ...engine.contract.contract import Contract
from ...engine.contract.seed_conditions import condition_tables, rows
from ...engine.progress import Stages
from ...engine.runtime.noise import noise

if TYPE_CHECKING:
    from ..network import Network

CALLS, SECONDS = 600, 30.0
PLANNED = 0.7  # of the seconds
HOPELESS = 5.0  # seconds of a first call after which no second one is tried
QUICK, TRIES = 0.2, 4  # seconds of a call below which it is timed so often
ELEMENTS, MOST_SEEDS, FEWEST_SEEDS = 16384, 256, 2  # seeds until they have so many elements, and their bounds
SEED = 1 << 41  # the first seed; those of `tune` lie lower


class SpentError(Exception):
    """The next call would be the 601st, or come after 30 seconds."""


# Conditions.
def has_typical_inputs(contract: Contract) -> bool:
    """Whether there are values to measure with: not for embeddings, say, that have no default."""
    return all(
        one.default is not None or one.labels or one.name in class_numbers(contract) for one in contract.conditions
    )


def class_numbers(contract: Contract) -> dict[str, Any]:
    """Every class in turn, for class numbers without a default and without names."""
    return {
        one.name: np.arange(one.low, min(one.high, one.low + MOST_SEEDS) + 1)
        for one in contract.conditions
        if one.default is None and not one.labels and not one.shape
        if one.dtype.startswith("int") and one.low is not None and one.high is not None
    }


@final
class Meter:
    """Runs programs on the network itself, in float32, and counts its calls."""

    def __init__(self, source: Network, progress: Stages | None) -> None:
        self._source = source
        self._progress = progress
        self._start = time.monotonic()
        self._noise = torch.zeros(0)
        self._conditions: dict[str, Any] = {}
        self._durations: list[float] = []  # of the calls with the seeds that are drawn now
        self.calls = 0
        self.expected = 0

    @property
    def left(self) -> int:
        """How many calls may be planned: by their number, and by the time that the last ones took."""
        by_number = CALLS - self.calls
        usual = statistics.median(self._durations) if self._durations else 0.0
        if usual == 0:
            return by_number
        return max(0, min(by_number, int((PLANNED * SECONDS - self.seconds) / usual)))

    def fit(self, expected: int) -> int:
        """How many seeds so many calls take in the time, two at least. Prepares them.

        Two seeds are timed first, as one call of many may outlast the bound; a call of more seeds costs less for each.
        """
        contract = self._source.contract
        wanted = min(MOST_SEEDS, max(8, math.ceil(ELEMENTS / math.prod(contract.shape))))
        fewest = contract.fixed_batch or FEWEST_SEEDS
        wanted, seeds, affordable = contract.fixed_batch or wanted, fewest, fewest
        for _ in range(3):
            self._draw(seeds)
            affordable = int(seeds * PLANNED * SECONDS / (self._seconds_of_a_call() * expected))
            if affordable <= seeds or seeds == wanted:
                break
            seeds = min(wanted, affordable)
        if affordable < seeds != fewest:
            seeds = max(fewest, affordable)
            self._draw(seeds)
        return seeds

    def _draw(self, seeds: int) -> None:
        contract = self._source.contract
        drawn = range(SEED, SEED + seeds)
        self._noise = torch.from_numpy(noise(drawn, contract.shape).numpy())
        self._conditions = rows(condition_tables(contract, class_numbers(contract)), np.array(drawn, np.uint64))
        self._durations = []

    def _seconds_of_a_call(self) -> float:
        """Of the quickest of a few calls, as the first prepares what later ones reuse; of one if that is hopeless."""
        last, quickest = parse_schedule(self._source.contract.schedule).last, math.inf
        for tried in range(1, TRIES + 1):
            self._call(self._noise, last)
            quickest = min(self._durations)
            if self._durations[-1] > HOPELESS or (tried > 1 and quickest > QUICK):
                break
        self._durations = [quickest]
        return max(quickest, 1e-6)

    def _call(self, x: Tensor, t: float) -> Tensor:
        if self.calls >= CALLS or time.monotonic() - self._start > SECONDS:
            raise SpentError
        self.calls += 1
        if self._progress and self.expected:
            self._progress("measuring samplers", min(self.calls, self.expected), self.expected)
        fed = self._source.contract.feed_times(np.array([t]))[0].item()
        start = time.monotonic()
        out = self._source.evaluate(x.float(), fed, self._conditions)
        self._durations.append(time.monotonic() - start)
        return out

    def sample(self, program: Program) -> Tensor:
        """Samples [seeds, *shape]. Raises SpentError."""
        return program.evaluate(self._call, self._noise)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start
