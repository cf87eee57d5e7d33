"""A call at a fixed rate for a time, as a control loop makes it: how long calls take, how late they begin.

Tick n is due at start + n / rate, whatever happened before. A call begins at its tick, or as soon as the former has
ended. A tick is missed when its call ends after the next tick is due; a call that takes several periods misses several.
Between ticks the thread sleeps, so lateness is that of the operating system's timer and scheduler.
"""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (50, 99, 99.9, 100)
WARM_UP = 20  # calls, as fast as they go


@final
@dataclass(frozen=True)
class RateReport:
    """Times in ms. call: how long calls take; late: how long after its tick a call begins; response: both together.

    Each is (p50, p99, p99.9, max). jitter: standard deviation of the time between the beginnings of calls. missed:
    ticks whose call had not ended when the next was due, of `ticks`. load: processes that kept cores busy beside it.
    """

    hz: float
    seconds: float
    ticks: int
    missed: int
    load: int
    call_ms: tuple[float, ...]
    late_ms: tuple[float, ...]
    response_ms: tuple[float, ...]
    jitter_ms: float


def run_at(call: Callable[[int], object], hz: float, seconds: float, *, load: int = 0) -> RateReport:
    """Call `call(tick)` at `hz` for `seconds`, with `load` busy processes beside it.

    Python's collector of cycles does not run meanwhile, as it should not in a control loop.
    """
    period_s, ticks = 1 / hz, max(1, round(hz * seconds))
    begun, ended = np.zeros(ticks), np.zeros(ticks)
    with _busy(load), _uncollected():
        for tick in range(WARM_UP):
            call(tick)
        start = time.perf_counter() + period_s
        for tick in range(ticks):
            wait = start + tick * period_s - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            begun[tick] = time.perf_counter()
            call(tick)
            ended[tick] = time.perf_counter()
    return report(begun - start, ended - start, hz, load=load)


def report(begun: NDArray[np.float64], ended: NDArray[np.float64], hz: float, *, load: int = 0) -> RateReport:
    """From the beginnings and ends of the calls, seconds [ticks] since the first tick was due."""
    due = np.arange(len(begun)) / hz
    return RateReport(
        hz=hz,
        seconds=len(begun) / hz,
        ticks=len(begun),
        missed=int((ended > due + 1 / hz).sum()),
        load=load,
        call_ms=_percentiles(ended - begun),
        late_ms=_percentiles(begun - due),
        response_ms=_percentiles(ended - due),
        jitter_ms=float(1e3 * np.std(np.diff(begun))) if len(begun) > 1 else 0.0,
    )


def _percentiles(seconds: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(one) for one in 1e3 * np.percentile(seconds, PERCENTILES))


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """`count` processes that compute and nothing else, ended afterwards."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_spin, daemon=True) for _ in range(count)]
    for one in workers:
        one.start()
    try:
        yield
    finally:
        for one in workers:
            one.terminate()
        for one in workers:
            one.join()


def _spin() -> None:
    total = 0
    while True:
        total = (total * 5 + 1) % 1_000_003


@contextmanager
def _uncollected() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
