"""Where an engine runs, as the application sees it: in a thread of this process, or elsewhere."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import final

from .about import About
from .orders import Drawn, Order
from .worker import Worker


class Host(ABC):
    """One engine. `open` is awaited once before anything else, `close` once at the end."""

    about: About

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Samples in the queue."""

    @property
    @abstractmethod
    def reloads(self) -> int:
        """How often a broken engine was loaded again."""

    @property
    @abstractmethod
    def trouble(self) -> str:
        """Why the engine does not answer, empty when it does."""

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    def check_room(self, count: int) -> None:
        """Before an order of so many samples is made: raises NotDrawnError if the queue would not take it."""

    @abstractmethod
    def draw(self, order: Order) -> asyncio.Future[Drawn]:
        """Raises NotDrawnError, or the future does. When that is cancelled, what was not begun is not sampled."""

    @abstractmethod
    async def close(self) -> None: ...


@final
class LocalHost(Host):
    """A worker of this process, which was started."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.about = worker.about

    @property
    def waiting(self) -> int:
        return self._worker.batcher.waiting

    @property
    def reloads(self) -> int:
        return self._worker.reloads

    @property
    def trouble(self) -> str:
        return self._worker.trouble

    async def open(self) -> None:
        pass

    def check_room(self, count: int) -> None:
        self._worker.batcher.check(count)

    def draw(self, order: Order) -> asyncio.Future[Drawn]:
        batcher = self._worker.batcher
        future: asyncio.Future[Drawn] = asyncio.get_running_loop().create_future()
        job = batcher.put(order, future)
        future.add_done_callback(lambda done: batcher.drop(job) if done.cancelled() else None)
        return future

    async def close(self) -> None:
        await asyncio.to_thread(self._worker.stop)
