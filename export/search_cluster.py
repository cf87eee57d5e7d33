"""The search by distance on Ray: workers draw samples and make their features, this process searches.

    pfdiff.tune("fashion.engine", 8, metric="fd", pictures="real.npz", features="fashion", ray="local", workers=2)

Which candidate is asked for next does not depend on who answered, so the ranking is that of one process. The engine and
the files of the extractor must be on every machine at the same path. Ray starts a worker that dies again, and asks it
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np

from ..engine.cluster import connected, size_pool
from ..engine.errors import BackendError, InputError
from ..engine.pool import Floats, Rows
from ..engine.program import Program
from .black_box import Subject
from .distance_judge import Asked, Sampler
from .features import extractor


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
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        opened = Sampler.opened(Subject.of(engine), seeds, given, extractor(features), backend, threads)
        self._open = ExitStack()  # until the process ends
        self._sampler = self._open.enter_context(opened)

    def features(self, program: str, rows: Rows) -> Floats:
        return self._sampler(Program.from_json(program), rows)


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
) -> Iterator[Callable[[Asked], list[Callable[[], Floats]]]]:
    """What `DistanceJudge` takes as `ahead`, on the cluster at `address`. Raises InputError, BackendError."""
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError:
        raise InputError("ray is not installed: pip install 'pfdiff[ray]', or search in this process") from None
    threads = threads or 1
    with connected(address):
        gpus, count = size_pool(ray.cluster_resources(), len(seeds), threads, workers, None, "auto")
        remote: Any = ray.remote(Drawing)
        settings = {"num_cpus": threads, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": -1}
        actors = [
            remote.options(**settings).remote(engine.resolve(), features, list(seeds), given, backend, threads)
            for _ in range(count)
        ]

        def waiting(reference: Any) -> Callable[[], Floats]:
            def get() -> Floats:
                try:
                    return np.array(ray.get(reference))  # a copy: what Ray shares cannot be written
                except RayError as error:
                    cause = getattr(error, "cause", None)
                    if isinstance(cause, (InputError, BackendError)):
                        raise cause from None
                    raise BackendError(f"the cluster gave up: {str(error).splitlines()[-1]}") from error

            return get

        def ahead(asked: Asked) -> list[Callable[[], Floats]]:
            return [
                waiting(actors[place % count].features.remote(program.to_json(), rows))
                for place, (program, rows) in enumerate(asked)
            ]

        yield ahead
