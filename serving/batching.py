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

Where network and server share the cores, all that is done here is taken from the network. So nothing walks over the
waiting orders, and `take` is woken for what makes a batch due, not for every order.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

from .jobs import Batch, Job, Piece, again, tell
from .orders import Drawn, Kind, NotDrawnError, Order

RETRY_MOST_S = 60
FORGET = 0.999  # what is not measured again seems faster with every batch, until it is tried again
EQUAL = 0.97  # of samples a second; running means of batches differ by more on a busy machine


@final
@dataclass(eq=False)
class Line:
    """Jobs of one kind, oldest first, never none; `left` of their samples wait."""

    kind: Kind
    jobs: deque[Job] = field(default_factory=deque)
    left: int = 0


@final
@dataclass(frozen=True)
class Here:
    """Samples of one kind that its last batch answered, and with `when` those that waited at its end."""

    kind: Kind
    count: int
    when: float = -math.inf


@final
class Batcher:
    """Thread-safe: `put` and `drop` are called by who serves, `take` by the one thread that samples."""

    def __init__(
        self, buckets: Sequence[int], *, max_wait_s: float, room: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """buckets: ascending batch sizes. room: samples that may wait. clock: seconds, for tests."""
        self.buckets = tuple(buckets)
        self.room = room
        self.waiting = 0  # samples that no batch has taken yet
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._lines: dict[Kind, Line] = {}
        self._changed = threading.Condition()
        self._alarm = -math.inf  # when `take` wakes by itself, while it waits
        self._closed: NotDrawnError | None = None
        self._seconds_each = 0.0  # of one sample, a running mean
        self._evaluation_s: dict[int, float] = {}  # of one evaluation of each bucket, running means
        self._enough = self.buckets[-1]  # samples that wait for no more
        self._here: Here | None = None

    def check(self, count: int) -> None:
        """Raises what `put` would raise for so many samples."""
        if count > self.room:
            raise NotDrawnError(400, f"{count} samples, this server takes at most {self.room} at once; ask in parts")
        if self._closed:
            raise again(self._closed)
        waiting = self.waiting
        if waiting + count > self.room:
            seconds = math.ceil(waiting * self._seconds_each)
            raise NotDrawnError(
                429,
                f"the queue is full: {waiting} samples wait, it holds {self.room}; try again later",
                min(max(1, seconds), RETRY_MOST_S),
            )

    def put(self, order: Order, future: asyncio.Future[Drawn]) -> Job:
        """future: gets what is drawn, or why nothing is. Raises NotDrawnError.

        429 when the queue is full, 503 when it is closed, 400 for more than it could hold.
        """
        with self._changed:
            self.check(order.count)
            job = Job(order, self._clock(), future)
            line = self._lines.get(order.kind)
            if line is None:
                line = self._lines[order.kind] = Line(order.kind)
            line.jobs.append(job)
            self._count(line, order.count)
            if self._due_at(line) < self._alarm:
                self._changed.notify()
            return job

    def drop(self, job: Job) -> None:
        """What no batch has taken yet of a job is not sampled: its client has left, or a part of it has failed."""
        with self._changed:
            line = self._lines.get(job.order.kind)
            if line is not None and job in line.jobs:
                line.jobs.remove(job)
                self._count(line, -job.left)

    def take(self) -> Batch | None:
        """The next batch, waited for; None when the queue is closed and empty."""
        with self._changed:
            while True:
                line = min(self._lines.values(), key=self._due_at, default=None)
                if line is None and self._closed:
                    return None
                now = self._clock()
                due_at = self._due_at(line) if line else math.inf
                if line and due_at <= now:
                    return self._taken(line, now)
                self._alarm = due_at
                self._changed.wait(None if line is None else due_at - now)
                self._alarm = -math.inf

    def sampled(self, count: int, bucket: int, nfe: int, seconds: float) -> None:
        """How long a batch of `count` samples in `bucket` took: for Retry-After and for the size of later batches.

        Told before its orders are answered.
        """
        with self._changed:
            if self._here:
                kind = self._here.kind
                waiting = self._lines[kind].left if kind in self._lines else 0
                self._here = Here(kind, self._here.count + waiting, self._clock())
            self._seconds_each = _mean(self._seconds_each, seconds / count)
            own = _mean(self._evaluation_s.get(bucket, 0.0), seconds / nfe)
            forgotten = {size: FORGET * one for size, one in self._evaluation_s.items()}
            self._evaluation_s = {**forgotten, bucket: own}
            self._enough = self._best(self.buckets[-1])

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
                tell([(job, why) for line in self._lines.values() for job in line.jobs])
                self._lines.clear()
                self.waiting = 0
            self._changed.notify_all()

    # With the lock held.
    def _count(self, line: Line, samples: int) -> None:
        """So many more of them wait, or fewer."""
        line.left += samples
        self.waiting += samples
        if not line.left:
            del self._lines[line.kind]

    def _due_at(self, line: Line) -> float:
        """When its next batch is due; as many samples as the fastest bucket takes are due at once."""
        oldest = line.jobs[0].arrived
        at_once = self._closed is not None or line.left >= self._enough or self._all_here(line, oldest)
        return oldest if at_once else oldest + self._max_wait_s

    def _all_here(self, line: Line, oldest: float) -> bool:
        """Whether as many samples wait as were here a moment ago."""
        here = self._here
        return (
            here is not None
            and line.left >= here.count
            and here.kind == line.kind
            and oldest <= here.when + self._max_wait_s
        )

    def _taken(self, line: Line, now: float) -> Batch:
        pieces: list[Piece] = []
        size = free = self.fitting(line.left)
        while free:
            job = line.jobs[0]
            count = min(job.left, free)
            pieces.append(Piece(job, slice(job.given, job.given + count)))
            job.started = job.started or now
            job.given += count
            free -= count
            if not job.left:
                line.jobs.popleft()
        self._count(line, -size)
        self._here = Here(line.kind, sum(piece.job.order.count for piece in pieces if not piece.job.left))
        return Batch(line.kind, pieces)


def _mean(former: float, value: float) -> float:
    """A running mean that forgets."""
    return 0.8 * former + 0.2 * value if former else value
