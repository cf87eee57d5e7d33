"""Orders on their way through the queue and the engine, and how their clients are told what became of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from .orders import Drawn, Kind, NotDrawnError, Order, Timing


@final
@dataclass(eq=False)
class Job:
    """An order on its way: `given` samples are in batches, `rows` are what came back, `future` is waited for."""

    order: Order
    arrived: float
    future: asyncio.Future[Drawn]
    given: int = 0
    rows: list[NDArray[Any]] = field(default_factory=list)
    started: float = 0.0
    sample_s: float = 0.0
    batches: list[tuple[int, int]] = field(default_factory=list)
    shared: int = 0

    @property
    def left(self) -> int:
        return self.order.count - self.given

    def drawn(self) -> Drawn | None:
        """The answer, once all its rows are here."""
        if sum(map(len, self.rows)) < self.order.count:
            return None
        rows = self.rows[0] if len(self.rows) == 1 else np.concatenate(self.rows)
        wait_ms = 1e3 * (self.started - self.arrived)
        return Drawn(rows, Timing(wait_ms, 1e3 * self.sample_s, tuple(self.batches), self.shared))


@final
@dataclass(frozen=True, eq=False)
class Piece:
    """Some samples of a job."""

    job: Job
    part: slice

    @property
    def count(self) -> int:
        return self.part.stop - self.part.start

    @property
    def order(self) -> Order:
        """The order, cut to these samples."""
        order, part = self.job.order, self.part
        if self.count == order.count:
            return order
        conditions = {name: values[part] for name, values in order.conditions.items()}
        return Order(order.kind, order.seeds[part], conditions, order.words, order.picture)


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """Pieces of one kind, at most the largest bucket together."""

    kind: Kind
    pieces: Sequence[Piece]

    @property
    def count(self) -> int:
        return sum(piece.count for piece in self.pieces)

    @property
    def orders(self) -> list[Order]:
        """The orders, cut to the samples in this batch."""
        return [piece.order for piece in self.pieces]


def joined(orders: Sequence[Order]) -> Order:
    """One order of all their samples; words and pictures must be looked at before."""
    first = orders[0]
    conditions = {name: np.concatenate([one.conditions[name] for one in orders]) for name in first.conditions}
    return Order(first.kind, np.concatenate([one.seeds for one in orders]), conditions, first.words)


# Told.
Told = tuple[Job, Drawn | NotDrawnError]


def tell(told: Sequence[Told]) -> None:
    """Each job its answer, from any thread: one call of the event loop for all of them."""
    if told:
        told[0][0].future.get_loop().call_soon_threadsafe(_resolve, told)


def _resolve(told: Sequence[Told]) -> None:
    for job, answer in told:
        if job.future.done():  # its client has left, or it was told before
            continue
        if isinstance(answer, Drawn):
            job.future.set_result(answer)
        else:
            job.future.set_exception(again(answer))


def again(error: NotDrawnError) -> NotDrawnError:
    """A copy, since an exception that is raised twice keeps both tracebacks."""
    return NotDrawnError(error.status, error.message, error.retry_s)
