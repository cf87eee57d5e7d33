"""The queue before an engine: orders of many clients become batches of one kind.

A batch is due when more samples would not be drawn faster, when as many samples wait as were here at the end of the
last batch of its kind (those it answered, and those that waited), or when its oldest order has waited `max_wait_s`. So
clients that ask again and again wait for each other, and not for anybody else. Of several batches that are due the one
with the oldest order goes first, so no kind can keep another waiting. An order larger than
what is free in a batch is cut, and its rest begins the next one. The queue is bounded in samples, not in orders: that
bounds the wait.

A batch has the bucket that draws most of the waiting samples a second, padded where they do not fill it; of buckets
that are equally fast (`EQUAL`) the smallest, whose samples are ready first. On a CPU, where a bucket takes about as
long as it is large, that is a small one; on a GPU the largest. Times are measured: by the warm-up, then by every batch.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from .orders import Drawn, Kind, NotDrawnError, Order

RETRY_MOST_S = 60
FORGET = 0.999  # what is not measured again seems faster with every batch, until it is tried again
EQUAL = 0.97  # of samples a second; running means of batches differ by more on a busy machine


@final
@dataclass(eq=False)
class Job:
    """An order on its way: `given` samples are in batches, `rows` are what came back, `future` is waited for."""

    order: Order
    arrived: float
    future: Future[Drawn] = field(default_factory=Future)
    given: int = 0
    rows: list[NDArray[Any]] = field(default_factory=list)
    started: float | None = None
    sample_s: float = 0.0
    batches: list[tuple[int, int]] = field(default_factory=list)
    shared: int = 0

    @property
    def left(self) -> int:
        return self.order.count - self.given


@final
@dataclass(frozen=True, eq=False)
class Piece:
    """Some samples of a job."""

    job: Job
    part: slice


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """Pieces of one kind, at most the largest bucket together."""

    kind: Kind
    pieces: Sequence[Piece]

    @property
    def count(self) -> int:
        return sum(piece.part.stop - piece.part.start for piece in self.pieces)

    @property
    def orders(self) -> list[Order]:
        """The orders, cut to the samples in this batch."""
        return [cut(piece.job.order, piece.part) for piece in self.pieces]


def again(error: NotDrawnError) -> NotDrawnError:
    """A copy, since an exception that is raised twice keeps both tracebacks."""
    return NotDrawnError(error.status, error.message, error.retry_s)


def cut(order: Order, part: slice) -> Order:
    """Some samples of an order."""
    conditions = {name: values[part] for name, values in order.conditions.items()}
    return Order(order.kind, order.seeds[part], conditions, order.words, order.picture)


@final
@dataclass(frozen=True)
class Here:
    """Samples of one kind that its last batch answered, and with `when` those that waited at its end."""

    kind: Kind
    count: int
    when: float = -math.inf


@final
class Batcher:
    """Thread-safe: `put` and `leave` are called by who serves, `take` by the one thread that samples."""

    def __init__(
        self, buckets: Sequence[int], *, max_wait_s: float, room: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """buckets: ascending batch sizes. room: samples that may wait. clock: seconds, for tests."""
        self.buckets = tuple(buckets)
        self.room = room
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        self._closed: NotDrawnError | None = None
        self._seconds_each = 0.0  # of one sample, a running mean
        self._evaluation_s: dict[int, float] = {}  # of one evaluation of each bucket, running means
        self._here: Here | None = None

    @property
    def waiting(self) -> int:
        """Samples that no batch has taken yet."""
        with self._changed:
            return sum(job.left for job in self._jobs)

    def put(self, order: Order) -> Job:
        """Raises NotDrawnError: 429 when the queue is full, 503 when it is closed, 400 for more than it could hold."""
        if order.count > self.room:
            raise NotDrawnError(
                400, f"{order.count} samples, this server takes at most {self.room} at once; ask in parts"
            )
        with self._changed:
            if self._closed:
                raise again(self._closed)
            waiting = sum(job.left for job in self._jobs)
            if waiting + order.count > self.room:
                seconds = math.ceil(waiting * self._seconds_each)
                raise NotDrawnError(
                    429,
                    f"the queue is full: {waiting} samples wait, it holds {self.room}; try again later",
                    min(max(1, seconds), RETRY_MOST_S),
                )
            job = Job(order, self._clock())
            self._jobs.append(job)
            self._changed.notify()
            return job

    def leave(self, job: Job) -> None:
        """The client has left: what no batch has taken yet is not sampled."""
        with self._changed:
            job.future.cancel()
            if job in self._jobs:
                self._jobs.remove(job)

    def take(self) -> Batch | None:
        """The next batch, waited for; None when the queue is closed and empty."""
        with self._changed:
            while True:
                self._jobs = [job for job in self._jobs if not job.future.done()]
                if not self._jobs:
                    if self._closed:
                        return None
                    self._changed.wait()
                    continue
                kind, due_at = self._next()
                now = self._clock()
                if due_at <= now:
                    return self._taken(kind, now)
                self._changed.wait(due_at - now)

    def sampled(self, count: int, bucket: int, nfe: int, seconds: float) -> None:
        """How long a batch of `count` samples in `bucket` took: for Retry-After and for the size of later batches.

        Told before its orders are answered.
        """
        with self._changed:
            if self._here:
                kind, waiting = self._here.kind, self._sizes().get(self._here.kind, 0)
                self._here = Here(kind, self._here.count + waiting, self._clock())
            self._seconds_each = _mean(self._seconds_each, seconds / count)
            own = _mean(self._evaluation_s.get(bucket, 0.0), seconds / nfe)
            forgotten = {size: FORGET * one for size, one in self._evaluation_s.items()}
            self._evaluation_s = {**forgotten, bucket: own}

    def fitting(self, count: int) -> int:
        """How many of `count` samples go into the next batch."""
        return min(count, self._best(count))

    def _best(self, count: int) -> int:
        """The bucket for `count` samples; of buckets not measured yet, the largest that they fill."""
        if not set(self.buckets) <= set(self._evaluation_s):
            return max((size for size in self.buckets if size <= count), default=self.buckets[0])
        rates = {size: min(size, count) / self._evaluation_s[size] for size in self.buckets}
        return next(size for size in self.buckets if rates[size] >= EQUAL * max(rates.values()))

    def close(self, why: NotDrawnError, *, refuse_waiting: bool = False) -> None:
        """Take nothing new; what waits is still given to `take`, or with `refuse_waiting` refused with `why`."""
        with self._changed:
            self._closed = why
            if refuse_waiting:
                for job in self._jobs:
                    if job.future.set_running_or_notify_cancel():
                        job.future.set_exception(again(why))
                self._jobs.clear()
            self._changed.notify_all()

    def _next(self) -> tuple[Kind, float]:
        """The kind that is due first, and when; as many as the fastest bucket takes are due at once."""
        best: tuple[Kind, float] | None = None
        enough = self._best(self.buckets[-1])
        for kind, size in self._sizes().items():  # in the order of their oldest jobs
            oldest = next(job.arrived for job in self._jobs if job.order.kind == kind)
            full = self._closed is not None or size >= enough or self._all_here(kind, size, oldest)
            due_at = oldest if full else oldest + self._max_wait_s
            if best is None or due_at < best[1]:
                best = kind, due_at
        assert best is not None
        return best

    def _sizes(self) -> dict[Kind, int]:
        """Samples that wait, by kind."""
        sizes: dict[Kind, int] = {}
        for job in self._jobs:
            sizes[job.order.kind] = sizes.get(job.order.kind, 0) + job.left
        return sizes

    def _all_here(self, kind: Kind, size: int, oldest: float) -> bool:
        """Whether as many samples wait as were here a moment ago."""
        here = self._here
        return here is not None and here.kind == kind and size >= here.count and oldest <= here.when + self._max_wait_s

    def _taken(self, kind: Kind, now: float) -> Batch:
        pieces: list[Piece] = []
        jobs = [job for job in self._jobs if job.order.kind == kind]
        free = self.fitting(sum(job.left for job in jobs))
        for job in jobs:
            size = min(job.left, free)
            pieces.append(Piece(job, slice(job.given, job.given + size)))
            job.given += size
            job.started = now if job.started is None else job.started
            free -= size
            if not job.left:
                self._jobs.remove(job)
            if not free:
                break
        self._here = Here(kind, sum(piece.job.order.count for piece in pieces if not piece.job.left))
        return Batch(kind, pieces)


def _mean(former: float, value: float) -> float:
    """A running mean that forgets."""
    return 0.8 * former + 0.2 * value if former else value


def joined(orders: Sequence[Order]) -> Order:
    """One order of all their samples; words and pictures must be looked at before."""
    first = orders[0]
    conditions = {name: np.concatenate([one.conditions[name] for one in orders]) for name in first.conditions}
    return Order(first.kind, np.concatenate([one.seeds for one in orders]), conditions, first.words)
