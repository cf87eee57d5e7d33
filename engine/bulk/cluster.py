"""A connection to a Ray cluster, and how many workers fit on it."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import InputError
from ..machine import cores

CONNECT_SECONDS = 5
TOKENS_SINCE = (2, 59)
# HTTP/2 (RFC 9113, 3.4): a client's first bytes, with empty settings; a gRPC server answers with its settings, kind 4.
PREFACE, SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)), 4
OBJECT_STORE_BYTES = 128 << 20  # of a local cluster: only records pass through it


def size_pool(
    resources: Mapping[str, float],
    shards: int,
    threads: int,
    workers: int | None,
    gpus_per_worker: float | None,
    device: str,
) -> tuple[float, int]:
    """(GPUs of a worker, workers) that fit what the cluster has. Raises InputError."""
    if (workers is not None and workers < 1) or (gpus_per_worker is not None and gpus_per_worker < 0):
        raise InputError(f"workers={workers}, gpus_per_worker={gpus_per_worker}: expected at least 1 and at least 0")
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    if gpus_per_worker is None:
        gpus_per_worker = 1.0 if gpus and device != "cpu" else 0.0
    room = int(cpus // threads)
    if gpus_per_worker:
        # Workers of less than a GPU share one; none has parts of two. 1 / 0.1 is 10, and 1 // 0.1 is 9.
        fit = int(1 / gpus_per_worker + 1e-9) * int(gpus) if gpus_per_worker < 1 else int(gpus / gpus_per_worker)
        room = min(room, fit)
    wanted = workers or max(1, min(room, shards))
    if wanted > room:
        needs = f"{threads} CPUs" if threads > 1 else "1 CPU"
        needs += f" and {gpus_per_worker:g} GPUs" if gpus_per_worker else ""
        raise InputError(
            f"{wanted} workers of {needs} each, but the cluster has {cpus:g} CPUs and {gpus:g} GPUs; "
            "ask for fewer workers, threads or GPUs"
        )
    return gpus_per_worker, wanted


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to the cluster at `address`, or the existing one. It ends a local cluster. Raises InputError."""
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else each pool of actors is announced as an error
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        _check_tokens(ray.__version__)
        settings |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        # Ray knows a container's limit, and not that of this process.
        if cores() < (os.cpu_count() or 0):
            settings["num_cpus"] = cores()
    elif address != "auto":
        check_listening(address)
    try:
        with _silence():
            ray.init(address=address, **settings)
    except Exception as error:  # among others a bare one, when a node does not start in time
        what = "no Ray cluster runs here" if address == "auto" else f"Ray at '{address}': {last_line(error)}"
        raise InputError(f"{what}; start one with 'ray start --head', or give local") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _check_tokens(version: str) -> None:
    """Raises InputError for a Ray that lets anybody in who reaches its ports, on which it listens at all addresses.

    From 2.59 on a local cluster asks for a token, which only this user can read.
    """
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if found < TOKENS_SINCE:
        raise InputError(
            f"Ray {version} starts clusters that anybody on the network may use; pip install 'ray>=2.59', "
            "or give the address of a cluster that you have secured"
        )


@contextmanager
def _silence() -> Iterator[None]:
    """Discards what this process writes to file descriptor 2: Ray's C++ core does so even when told to be quiet."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def check_listening(address: str) -> None:
    """Raises InputError unless something listens at the address; Ray itself would wait for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and host and port.isdigit()):
        raise InputError(f"Ray address '{address}', expected local, auto, HOST:PORT or ray://HOST:PORT")
    try:
        with socket.create_connection((host, int(port)), CONNECT_SECONDS) as line:
            # Behind TLS nothing can be asked.
            why = "" if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true") else _no_grpc(line)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
    if why:
        raise InputError(f"no Ray cluster at '{address}': {why}; start one with 'ray start --head', or give local")


def _no_grpc(line: socket.socket) -> str:
    """Why the other side is not Ray; empty when it may be. Raises OSError when it does not answer."""
    line.settimeout(CONNECT_SECONDS)
    line.sendall(PREFACE)
    head = b""
    while len(head) < 4 and (part := line.recv(4 - len(head))):
        head += part
    return "" if head[3:] == bytes((SETTINGS,)) else "something else than Ray answers there"


def last_line(error: BaseException) -> str:
    """The last line of an error's text that is not empty, where Ray says the cause; else the error's class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
