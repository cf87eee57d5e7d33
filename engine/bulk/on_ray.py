"""A bulk run on Ray: Ray Data maps the numbers of the missing shards over a pool of actors, one engine each.

Actors write their shards themselves and return a record of some hundred bytes. So every machine needs this package, and
the engine and the folder at the same path. Ray restarts an actor that dies and gives its shard to another actor, until
a shard has cost MOST_TRIES of them.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, final

from ..errors import BackendError, InputError, PfdiffError
from .cluster import connected, last_line, size_pool
from .manifest import ShardRecord, shard_name, writing_to
from .recipe import Recipe
from .shards import attempt
from .worker import Worker, Workplace, check_tries


@final
class Actor:
    """The code of one worker. An error becomes a row, since it would come again if Ray tried again."""

    def __init__(self, recipe: Recipe, place: Workplace) -> None:
        self._recipe = recipe
        self._place = place
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        indices = [int(index) for index in batch["index"]]
        try:
            if self._worker is None:
                self._worker = self._opened(indices[0])
            records = [json.dumps(asdict(self._worker.make(index))) for index in indices]
            return {"index": indices, "record": records, "error": [""] * len(indices)}
        except PfdiffError as error:
            where = f"{socket.gethostname()}: {error}"
            return {"index": indices, "record": [""] * len(indices), "error": [where] * len(indices)}

    def _opened(self, index: int) -> Worker:
        """The worker. Loading counts as an attempt at the shard: an engine may end its process while it is loaded."""
        target = self._place.out / shard_name(self._recipe, index)
        check_tries(target)
        with ExitStack() as stack:
            with writing_to(self._place.out):
                stack.enter_context(attempt(target))
            return Worker(self._recipe, self._place)


def run_on_ray(
    address: str,
    recipe: Recipe,
    place: Workplace,
    shards: Sequence[int],
    *,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
) -> Iterator[tuple[int, ShardRecord]]:
    """Make `shards` on the cluster at `address`; yields (index, record) as they are finished, in any order.

    Raises InputError (Ray not installed, no such cluster, not enough room), PfdiffError with what a worker says.
    """
    try:
        import ray
        from ray.data import ActorPoolStrategy, DataContext, from_items
        from ray.exceptions import RayError
    except ImportError:
        raise InputError("ray[data] is not installed: pip install 'pfdiff[ray]', or run in this process") from None
    threads = place.threads or 1
    place = Workplace(place.engine, place.out, place.device, place.backend, threads)
    with connected(address):
        gpus, pool = size_pool(ray.cluster_resources(), len(shards), threads, workers, gpus_per_worker, place.device)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_no_progress_timeout_s = -1  # half an hour by default; a shard may take longer
        rows = from_items([{"index": index} for index in shards], override_num_blocks=len(shards)).map_batches(
            Actor,
            fn_constructor_args=(recipe, place),
            batch_size=1,
            compute=ActorPoolStrategy(size=pool, max_tasks_in_flight_per_actor=2),  # one waits while one is made
            num_cpus=threads,
            num_gpus=gpus,
        )
        try:
            for row in rows.iter_rows():
                if row["error"]:
                    raise PfdiffError(str(row["error"]))
                yield int(row["index"]), ShardRecord(**json.loads(row["record"]))
        except RayError as error:
            raise BackendError(f"the cluster gave up: {last_line(error)}; finished shards are kept") from error
