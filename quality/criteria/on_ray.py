"""The search by distance on Ray: workers draw samples and make their features, this process searches.

    pfdiff.tune("fashion.engine", 8, metric="fd", pictures="real.npz", features="fashion", ray="local", workers=2)

Which candidate is asked for next does not depend on who answered, so the ranking is that of one process. The engine and
the files of the extractor must be on every machine at the same path. Ray starts a worker that dies again, and asks it
again, MOST_TRIES times at most. A worker that finds no room on a busy cluster is asked for nothing until it does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, final

import numpy as np

from ...engine.bulk.cluster import connected, size_pool
from ...engine.bulk.worker import MOST_TRIES
from ...engine.compiler.program import Program
from ...engine.errors import BackendError, InputError
from ..distances.features import extractor, with_whole_path
from ..sampling.pool import Floats, Rows
from ..sampling.subject import Subject
from .distance import Asked, FeatureSampler

UNDER_WAY = 2  # asked of a worker at once: it goes on while this process computes a distance


@final
class Drawing:
    """What runs on a worker: one engine, one extractor, all seeds."""

    def __init__(
        self,
        engine: Path,
        features: str,
        seeds: Sequence[int],
        given: Mapping[str, Any] | None,
        backend: str,
        threads: int,
        scale: tuple[float, float],
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        opened = FeatureSampler.opened(
            Subject.of(engine), seeds, given, extractor(features, scale=scale), backend, threads
        )
        self._open = ExitStack()  # until the process ends
        self._sampler = self._open.enter_context(opened)

    def ready(self) -> None:
        """Answered as soon as there is a worker."""

    def features(self, program: str, rows: Rows) -> Floats:
        return self._sampler(Program.from_json(program), rows)


@final
class Dealer:
    """Deals what is asked to the workers that have answered, each the next one when it has done one.

    wait(references) -> those that are answered, at least one; get(reference) -> the answer, or its error.
    """

    def __init__(self, workers: Sequence[Any], wait: Callable[[list[Any]], list[Any]], get: Callable[[Any], Any]):
        self._workers = workers
        self._wait, self._get = wait, get
        self._numbers = count()
        self._asked: deque[tuple[int, str, Rows]] = deque()
        self._load: dict[int, int] = {}  # of the workers that have answered
        self._starting = {worker.ready.remote(): index for index, worker in enumerate(workers)}
        self._dealt: dict[Any, tuple[int, int]] = {}  # (worker, number) by reference
        self._done: dict[int, Any] = {}

    def __call__(self, asked: Asked) -> list[Callable[[], Floats]]:
        """For each a function that waits for its features."""
        numbered = [(next(self._numbers), program.to_json(), rows) for program, rows in asked]
        self._asked.extend(numbered)
        self._deal()
        return [partial(self._answer, number) for number, _, _ in numbered]

    def _answer(self, number: int) -> Floats:
        while number not in self._done:
            for reference in self._wait([*self._starting, *self._dealt]):
                if reference in self._starting:
                    self._get(reference)
                    self._load[self._starting.pop(reference)] = 0
                else:
                    worker, done = self._dealt.pop(reference)
                    self._load[worker] -= 1
                    self._done[done] = reference
            self._deal()
        return np.array(self._get(self._done.pop(number)))  # a copy: what Ray shares cannot be written

    def _deal(self) -> None:
        while self._asked and self._load:
            worker = min(self._load, key=self._load.__getitem__)
            if self._load[worker] == UNDER_WAY:
                return
            number, program, rows = self._asked.popleft()
            self._dealt[self._workers[worker].features.remote(program, rows)] = worker, number
            self._load[worker] += 1


@contextmanager
def crew(
    address: str,
    engine: Path,
    features: str,
    seeds: Sequence[int],
    given: Mapping[str, Any] | None,
    *,
    backend: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
    scale: tuple[float, float] = (-1.0, 1.0),
) -> Iterator[Callable[[Asked], list[Callable[[], Floats]]]]:
    """What `DistanceCriterion` takes as `ahead`, on the cluster at `address`. Raises InputError, BackendError."""
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError:
        raise InputError("ray is not installed: pip install 'pfdiff[ray]', or search in this process") from None
    threads = threads or 1
    with connected(address):
        gpus, room = size_pool(ray.cluster_resources(), len(seeds), threads, workers, None, "auto")
        remote: Any = ray.remote(Drawing)
        settings = {"num_cpus": threads, "num_gpus": gpus}
        settings |= {"max_restarts": MOST_TRIES, "max_task_retries": MOST_TRIES}
        place = (engine.resolve(), with_whole_path(features), list(seeds), given, backend, threads, scale)
        drawing = [remote.options(**settings).remote(*place) for _ in range(room)]

        def wait(references: list[Any]) -> list[Any]:
            return ray.wait(references, num_returns=1)[0]

        def get(reference: Any) -> Any:
            try:
                return ray.get(reference)
            except RayError as error:
                cause = getattr(error, "cause", None)
                if isinstance(cause, (InputError, BackendError)):
                    raise cause from None
                raise BackendError(f"the cluster gave up: {str(error).splitlines()[-1]}") from error

        yield Dealer(drawing, wait, get)
