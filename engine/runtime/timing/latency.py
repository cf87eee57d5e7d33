"""How long a whole sample takes, and how much of it is not the network: all measured in one run, in turns.

A shared machine drifts by more than the few per cent of interest. So every round times one whole call and, beside it,
its bare evaluations. The overhead is the median of the rounds' ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import InputError, shown

FEWEST_ROUNDS, SETTLED_ROUNDS = 3, 20  # at least; before the spread may end a measurement
SPREAD = 0.01  # of the median, that is enough
Timer = Callable[[], float]  # seconds; the difference of two calls is the time of what was started between them


@dataclass(frozen=True)
class Ran:
    """Who ran what: the backend's name, its device, precision and threads, a program and a batch size."""

    backend: str
    device: str
    precision: str
    threads: int | None
    nfe: int
    batch: int


@final
@dataclass(frozen=True)
class Latency(Ran):
    """Figures of `Engine.bench`; `_ms` are milliseconds for a whole batch of `batch` samples.

    p50, p90, p99, max: whole calls of `Engine.sample`. first: loading apart, the first call of a fresh engine.
    load: loading the network. network: one bare evaluation (median); floor: `nfe` of them in a row (median).
    updates: the `nfe` updates in a row (median). overhead: median over the rounds of whole call / its `nfe` bare
    evaluations. per_sample: p50 / batch.
    """

    rounds: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    first_ms: float
    load_ms: float
    network_ms: float
    floor_ms: float
    updates_ms: float
    overhead: float
    per_sample_ms: float

    @classmethod
    def of(cls, ran: Ran, times: NDArray[np.float64], *, load_s: float, first_s: float) -> Latency:
        """From rounds [n, 3] in ms: the whole call, its bare evaluations, its updates."""
        whole, floor, updates = times.T
        p50, p90, p99 = np.percentile(whole, (50, 90, 99))
        return cls(
            **asdict(ran),
            rounds=len(times),
            p50_ms=float(p50),
            p90_ms=float(p90),
            p99_ms=float(p99),
            max_ms=float(whole.max()),
            first_ms=1e3 * first_s,
            load_ms=1e3 * load_s,
            network_ms=float(np.median(floor)) / ran.nfe,
            floor_ms=float(np.median(floor)),
            updates_ms=float(np.median(updates)),
            overhead=float(np.median(whole / floor)),
            per_sample_ms=float(p50) / ran.batch,
        )


@final
@dataclass(frozen=True)
class TimedParts:
    """A whole call and what it is made of, functions without arguments that can be called as often as one likes.

    whole: `Engine.sample` of one batch of seeds; network: its `nfe` bare evaluations; updates: its `nfe` updates.
    wrap(launch): starts another launch the same way as these two, so that times are comparable.
    On a CUDA device they return before the device is done; `timer` takes that into account.
    """

    whole: Callable[[], object]
    network: Callable[[], object]
    updates: Callable[[], object]
    wrap: Callable[[Callable[[], None]], Callable[[], object]]
    timer: Timer


@final
class CudaTimer:
    """Seconds on a CUDA device, by events on the current stream around what is started between two calls.

    Each call waits for the device and then begins anew, so an event's time is never that of the host waking up.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._elapsed_s = 0.0
        self._start = self._event()

    def __call__(self) -> float:
        stop = self._event()
        stop.synchronize()
        self._elapsed_s += 1e-3 * self._start.elapsed_time(stop)
        self._start = self._event()
        return self._elapsed_s

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def timer_of(device: torch.device) -> Timer:
    """The timer for what runs on `device`."""
    return CudaTimer(device) if device.type == "cuda" else time.perf_counter


def in_turns(
    functions: Sequence[Callable[[], object]],
    rounds: int,
    timer: Timer = time.perf_counter,
    pause_s: float = 0.0,
    enough: Callable[[np.ndarray], bool] | None = None,
) -> np.ndarray:
    """Milliseconds [rounds, functions], after two rounds unmeasured; each function is first in as many rounds.

    pause_s: sleep before every call. enough: asked after every round with the times so far; true ends it early.
    """
    count = len(functions)
    times = np.empty((rounds, count))
    for turn in range(-2, rounds):
        for place in range(count):
            which = (turn + place) % count
            if pause_s:
                time.sleep(pause_s)
            start = timer()
            functions[which]()
            if turn >= 0:
                times[turn, which] = 1e3 * (timer() - start)
        if turn >= 0 and enough is not None and enough(times[: turn + 1]):
            return times[: turn + 1]
    return times


@final
class Enough:
    """Ends a measurement: its seconds are over, or the median of the first function is known to SPREAD."""

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds

    def __call__(self, times: np.ndarray) -> bool:
        if len(times) < FEWEST_ROUNDS:
            return False
        if time.perf_counter() > self._end:
            return True
        low, middle, high = np.percentile(times[:, 0], (25, 50, 75))
        # Half the notch of a box plot, McGill et al. 1978: 1.57 IQR / sqrt(n) about the median, 95 %.
        return len(times) >= SETTLED_ROUNDS and 1.57 * (high - low) < SPREAD * middle * len(times) ** 0.5


def measured(
    ran: Ran,
    open_session: Callable[[], Any],
    whole: Callable[[Any, int, int], Callable[[], object]],
    parts: Callable[[Any, int, int], TimedParts],
    rounds: int,
    seconds: float | None,
) -> Latency:
    """`rounds` of a session that is opened for it, fewer where `seconds` are over or enough; see `Engine.bench`.

    whole, parts: a call of a session, and what it is made of. Raises InputError.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise InputError(f"rounds={shown(rounds)}, expected an integer of at least 1")
    start = time.perf_counter()
    session = open_session()
    loaded = time.perf_counter()
    try:
        whole(session, ran.nfe, ran.batch)()
        session.wait()
        first = time.perf_counter()
        timed = parts(session, ran.nfe, ran.batch)
        enough = None if seconds is None else Enough(seconds)
        times = in_turns((timed.whole, timed.network, timed.updates), rounds, timed.timer, enough=enough)
    finally:
        session.close()
    return Latency.of(ran, times, load_s=loaded - start, first_s=first - loaded)
