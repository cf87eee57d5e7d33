"""The same application on a Ray cluster, by Ray Serve: a front that speaks HTTP, and replicas of each engine behind it.

A replica is one engine in one thread, with the queue and the batches of `batching`, on a GPU of its own where there
are any. The front checks requests as in one process. Since a seed names one sample, an order whose replica died is
given to another one, and nobody notices. Engine directories must be on a file system that every machine has at the
same path, and this package installed there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from ..engine.artifact import read_artifact
from ..engine.bulk.cluster import connected
from ..engine.errors import InputError
from .about import About
from .app import make_app
from .guard import Access
from .hosts import Host, LocalHost
from .limits import DRAIN_SECONDS, MOST_CONNECTIONS, Limits
from .orders import Drawn, NotDrawnError, Order
from .run import is_loopback, url_of
from .worker import Opening, Say, Worker

APPLICATION = "pfdiff"
MOST_TRIES = 4
HEALTH_SECONDS = 2.0
NEEDS = "Ray Serve is not installed: pip install 'ray[serve]'"


@final
@dataclass(frozen=True)
class Where:
    """address: local, auto or HOST:PORT. replicas: of each engine, None for as many as the load asks for."""

    address: str
    replicas: int | None
    host: str
    port: int


class Replica:
    """One engine in one process of the cluster."""

    def __init__(self, name: str, path: Path, opening: Opening, limits: Limits) -> None:
        self._worker = Worker(name, lambda: opening.of(path), limits)
        self._worker.start(lambda line: None)
        self._host = LocalHost(self._worker)

    def about(self) -> About:
        """What the front checks requests against."""
        return self._host.about

    async def draw(self, order: Order) -> Drawn | NotDrawnError:
        """Errors are values here: those that are raised would come wrapped in Ray's own."""
        try:
            return await self._host.draw(order)
        except NotDrawnError as error:
            return error

    def check_health(self) -> None:
        """Ray Serve starts a replica again whose engine is down."""
        if self._worker.trouble:
            raise RuntimeError(self._worker.trouble)


@final
class RayHost(Host):
    """The replicas of one engine, as the front sees them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._running = 0
        self._handle: Any = None

    @property
    def waiting(self) -> int:
        """Samples at the replicas, waiting or not."""
        return self._running

    @property
    def reloads(self) -> int:
        return 0

    @property
    def trouble(self) -> str:
        return "" if self._handle else "no replica has answered yet"

    async def open(self) -> None:
        from ray import serve

        handle: Any = serve.get_deployment_handle(self._name, APPLICATION)
        self.about = await handle.about.remote()
        self._handle = handle

    def check_room(self, count: int) -> None:
        """Only the replicas know."""

    def draw(self, order: Order) -> asyncio.Future[Drawn]:
        return asyncio.ensure_future(self._drawn(order))

    async def _drawn(self, order: Order) -> Drawn:
        from ray.exceptions import RayError
        from ray.serve.exceptions import BackPressureError, RayServeException

        self._running += order.count
        try:
            for tried in range(MOST_TRIES):
                response = self._handle.draw.remote(order)
                try:
                    answer = await response
                except asyncio.CancelledError:
                    response.cancel()
                    raise
                except BackPressureError:
                    raise NotDrawnError(429, "the queues are full; try again later", 1) from None
                except (RayError, RayServeException):  # the replica is gone
                    await asyncio.sleep(0.1 * 2**tried)
                    continue
                if isinstance(answer, NotDrawnError):
                    raise answer
                return answer
            raise NotDrawnError(503, f"{MOST_TRIES} replicas died of this or meanwhile; try again later", 5)
        finally:
            self._running -= order.count

    async def close(self) -> None:
        pass


@contextmanager
def deployed(
    engines: Mapping[str, Path], opening: Opening, limits: Limits, where: Where, say: Say, *, api_key: str | None = None
) -> Iterator[str]:
    """The URL of the application, which is taken down at the end, after what it has let in is answered.

    engines: directories by name. Raises InputError (Ray Serve not installed, no such cluster, no room),
    EngineFileError.
    """
    try:
        os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
        from ray import serve
        from ray.serve.config import ProxyLocation
    except ImportError:
        raise InputError(NEEDS) from None
    largest = {name: read_artifact(path).batch[-1] for name, path in engines.items()}
    say(f"connecting to Ray at {where.address}")
    with connected(where.address), _signals():
        room, resources = _room(opening)
        wanted = (where.replicas or 1) * len(engines)
        if wanted > room:
            raise InputError(f"{wanted} replicas, the cluster has room for {room}; give fewer --replicas")
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(
            proxy_location=ProxyLocation.EveryNode,
            http_options={"host": where.host, "port": where.port},
            logging_config={"log_level": "ERROR"},
        )
        logging.getLogger("ray.serve").setLevel(logging.ERROR)  # which serve.start has set
        say(f"starting replicas of {', '.join(engines)}")
        most = max(1, room // len(engines))
        replicas = [
            _replicas(name, limits, resources, where.replicas, most, largest[name]).bind(
                name, path.resolve(), opening, limits
            )
            for name, path in engines.items()
        ]
        front = _front(list(engines), limits, Access(api_key, is_loopback(where.host)))
        serve.run(front.bind(*replicas), name=APPLICATION, route_prefix="/")
        try:
            yield url_of(where.host, where.port)
        finally:
            serve.delete(APPLICATION)


def _room(opening: Opening) -> tuple[int, dict[str, float]]:
    """How many replicas the cluster holds, and what each of them takes: a GPU, or the threads of an engine."""
    import ray

    found = ray.cluster_resources()
    gpus = int(found.get("GPU", 0)) if opening.device != "cpu" else 0
    if gpus:
        return gpus, {"num_gpus": 1, "num_cpus": 0}
    threads = opening.threads or 1
    return int(found.get("CPU", 1) // threads), {"num_cpus": threads}


def _replicas(
    name: str, limits: Limits, resources: Mapping[str, float], replicas: int | None, most: int, largest: int
) -> Any:
    """The deployment of one engine; without a number of replicas, between 1 and `most` as the load asks for."""
    from ray import serve

    scaling = {"min_replicas": 1, "max_replicas": most, "target_ongoing_requests": 2 * largest}
    return serve.deployment(
        Replica,
        name=name,
        num_replicas=replicas,
        autoscaling_config=scaling if replicas is None else None,
        ray_actor_options=dict(resources),
        max_ongoing_requests=limits.queue + largest,
        max_queued_requests=limits.queue,
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
    )


def _front(names: Sequence[str], limits: Limits, access: Access) -> Any:
    """The deployment that speaks HTTP."""
    from ray import serve

    def build() -> Any:
        return make_app({name: RayHost(name) for name in names}, limits, access)

    return serve.deployment(
        serve.ingress(build)(),
        name="front",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=MOST_CONNECTIONS,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
    )


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM like SIGINT, in place of the handler of Ray's core, which aborts."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def wait_for_signal() -> None:
    """Return at SIGTERM or SIGINT; a second one does not interrupt the end."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    asked.wait()
