"""One measurement: pytest-benchmark times a function, and others are timed beside it in every round.

A shared machine drifts by more than what is looked for, so what is tracked are ratios of times of one round. The others
are timed before the function in one round and after it in the next. A measurement keeps the ratios of BLOCKS contiguous
stretches of its rounds: how far they lie apart is what `regression` calls the spread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from ...engine.api import Engine
from ...engine.runtime.timing.latency import Timer
from .cases import Case
from .machine import commit
from .ratios import BLOCKS, OVERHEAD, Times

Function = Callable[[], object]

ROUNDS = (BLOCKS, 400)  # fewest and most
PAUSE_S = 0.02  # lets the threads of another library, which spin for a while after their work, go to sleep


@final
@dataclass
class Turns:
    """Times the functions beside the benchmarked one: as its set-up in even rounds, as its tear-down in odd ones."""

    beside: Mapping[str, Function]
    timer: Timer
    pause_s: float
    rounds: dict[str, list[float]] = field(init=False)
    _count: int = 0

    def __post_init__(self) -> None:
        self.rounds = {name: [] for name in self.beside}

    def before(self) -> None:
        if self._count % 2 == 0:
            self._time()
        time.sleep(self.pause_s)

    def after(self, *_: object) -> None:
        if self._count % 2 == 1:
            self._time()
        self._count += 1

    def _time(self) -> None:
        for name, function in self.beside.items():
            time.sleep(self.pause_s)
            start = self.timer()
            function()
            self.rounds[name].append(1e3 * (self.timer() - start))


@final
class Measure:
    """The fixture `measure`; use it once a test."""

    def __init__(self, benchmark: Any, timer: Timer, seconds: float) -> None:
        self._benchmark = benchmark
        self._timer = timer
        self._seconds = seconds

    def __call__(
        self,
        function: Function,
        beside: Mapping[str, Function] | None = None,
        *,
        pause_s: float = 0.0,
        rounds: int | None = None,
        weight: float = 1.0,
    ) -> tuple[Times, dict[str, Times]]:
        """Milliseconds of `function` [rounds] and of each beside it.

        rounds: by default as many as fit `--seconds` times `weight`, after one call of each that does not count; a
        given number is all that is done. pause_s: sleep before every call.
        """
        turns = Turns(beside or {}, self._timer, pause_s)
        if rounds is None:
            start = time.perf_counter()
            for one in (function, *turns.beside.values()):
                one()
            once = time.perf_counter() - start + pause_s * (1 + len(turns.beside))
            rounds = int(np.clip(weight * self._seconds / once, *ROUNDS))
        self._benchmark.pedantic(function, setup=turns.before, teardown=turns.after, rounds=rounds, iterations=1)
        times = 1e3 * np.asarray(self._benchmark.stats.stats.data, np.float64)
        return times, {name: np.asarray(found) for name, found in turns.rounds.items()}

    def record(self, times: Times, case: Case | None = None, engine: Engine | None = None, **facts: Any) -> None:
        """Fill `extra_info`: every field of every benchmark, None where it means nothing.

        overhead_ratio: what is tracked, the median of a sample's `blocks`, and not the median of its rounds' ratios,
        which with a dozen rounds moves with whatever else ran in them. floor_ms: of a sample its bare evaluations, of
        an update a copy of its bytes; None where no floor is measured beside. A network's needs the rate of a product
        in its own library: see `cpu`.
        """
        batch = case.batch if case else 1
        overhead = facts.get("ratios", {}).get(OVERHEAD)
        p50, p90, p99 = (float(one) for one in np.percentile(times, (50, 90, 99)))
        known = {
            "engine": case.engine if case else None,
            "nfe": case.nfe if case else None,
            "batch": batch,
            "backend": engine.backend if engine else None,
            "device": engine.device if engine else "cpu",
            "precision": case.precision if case else None,
            "threads": engine.threads if engine else None,
            "commit": commit(),
            "peer": None,
            "per_sample_ms": p50 / batch,
            "p50_ms": p50,
            "p90_ms": p90,
            "p99_ms": p99,
            "max_ms": float(times.max()),
            "overhead_ratio": float(np.median(overhead)) if overhead else None,
            "floor_ms": None,
            "bytes": None,
            "ratios": {},
        }
        self._benchmark.extra_info.update({**known, **facts})


def repeated(function: Function, seconds: float = 2e-4) -> tuple[Function, int]:
    """`function` as often in a row as takes about `seconds`, so that a timer's resolution is nothing; and how often."""
    function()
    start = time.perf_counter()
    function()
    count = max(1, math.ceil(seconds / max(time.perf_counter() - start, 1e-7)))

    def many() -> None:
        for _ in range(count):
            function()

    return many, count
