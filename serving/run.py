"""One process: load engines, then answer until SIGTERM or SIGINT; what was let in is answered first."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import uvicorn

from ..engine.errors import InputError
from .app import make_app
from .guard import LOOPBACK, Access
from .hosts import Host, LocalHost
from .limits import DRAIN_SECONDS, MOST_CONNECTIONS, Limits
from .worker import Opening, Say, Worker


def names_of(paths: Sequence[Path]) -> dict[str, Path]:
    """The engines by name: that of the directory, without `.engine`. Raises InputError for one name twice."""
    named: dict[str, Path] = {}
    for path in paths:
        name = path.resolve().name.removesuffix(".engine")
        if name in named:
            raise InputError(f"two engines are called '{name}': {named[name]} and {path}; rename one directory")
        named[name] = path
    return named


def load_workers(engines: Mapping[str, Path], opening: Opening, limits: Limits, say: Say) -> dict[str, Worker]:
    """Workers that are loaded and warm, of engine directories by name. Raises what `load` raises."""
    workers: dict[str, Worker] = {}
    for name, path in engines.items():
        workers[name] = Worker(name, lambda path=path: opening.of(path), limits)
        workers[name].start(say)
    return workers


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 is any free one. Raises InputError."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot listen on {host} port {port}: {why}; choose another --host or --port") from None
    return bound


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    return host in LOOPBACK or host.startswith("127.")


def url_of(host: str, port: int) -> str:
    """What to type into a browser."""
    shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def serve(
    workers: dict[str, Worker], limits: Limits, bound: socket.socket, *, api_key: str | None, ready: Callable[[], None]
) -> None:
    """Answer on `bound` until a signal; `ready` is called when requests are answered."""
    hosts: dict[str, Host] = {name: LocalHost(worker) for name, worker in workers.items()}
    app = make_app(hosts, limits, Access(api_key, is_loopback(bound.getsockname()[0])))
    logging.getLogger("pfdiff.serving").addHandler(logging.StreamHandler())
    server = uvicorn.Server(config(app))
    bound.listen(MOST_CONNECTIONS)
    ready()
    server.run(sockets=[bound])


def config(app: object) -> uvicorn.Config:
    """How uvicorn is run here and in the tests."""
    return uvicorn.Config(
        app,  # pyright: ignore[reportArgumentType]  # any ASGI application
        lifespan="on",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        h11_max_incomplete_event_size=32 << 10,
    )
