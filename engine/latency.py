"""How long a whole sample takes, and how much of it is not the network: both measured in one run, in turns.

A shared machine drifts by more than the few per cent that are looked for, so every round times one whole call and
right after it the bare evaluations of as many network runs; the overhead is the median of the rounds' ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np


@final
@dataclass(frozen=True)
class Latency:
    """Figures of `Engine.bench`; `_ms` are milliseconds for a whole batch of `batch` samples.

    p50, p90, p99, max: whole calls of `Engine.sample`. first: loading apart, the first call of a fresh engine.
    load: loading the network. network: one bare evaluation (median); floor: `nfe` of them in a row (median).
    overhead: median over the rounds of whole call / its `nfe` bare evaluations. per_sample: p50 / batch.
    """

    backend: str
    device: str
    precision: str
    threads: int | None
    nfe: int
    batch: int
    rounds: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    first_ms: float
    load_ms: float
    network_ms: float
    floor_ms: float
    overhead: float
    per_sample_ms: float


def in_turns(whole: Callable[[], object], floor: Callable[[], object], rounds: int) -> np.ndarray:
    """Milliseconds [rounds, 2] of `whole` and `floor`, each first in every other round, after two rounds unmeasured."""
    times = np.empty((rounds, 2))
    calls = (whole, floor)
    for turn in range(-2, rounds):
        for which in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            calls[which]()
            if turn >= 0:
                times[turn, which] = 1e3 * (time.perf_counter() - start)
    return times
