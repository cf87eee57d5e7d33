"""A local Ray cluster with the application, for the tests that run here and there."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import socket
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pfdiff.engine.bulk.cluster import connected
from pfdiff.engine.errors import InputError
from pfdiff.serving.limits import Limits
from pfdiff.serving.worker import Opening

from ..small.serving import Client

STARTS = 3


def check_installed() -> None:
    """What `ray[serve]` brings beyond ray itself."""
    for name in ("ray", "aiohttp", "grpc", "watchfiles"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is missing: pip install 'pfdiff[serve-ray]'")


@contextmanager
def cluster() -> Iterator[None]:
    """A local cluster, for whose start Ray itself waits no longer than 30 s: on a busy machine it is tried again."""
    for left in reversed(range(STARTS)):
        with ExitStack() as stack:
            try:
                stack.enter_context(connected("local"))
            except InputError as error:
                if not left or "timed out during startup" not in str(error):
                    raise
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ResourceWarning)  # Ray forgets the processes of such a node
                    gc.collect()
                continue
            yield
            return


@contextmanager
def on_ray(*engines: Path, replicas: int = 1) -> Iterator[Client]:
    """A client of the application on a local cluster."""
    check_installed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray Serve's own use of pydantic
        importlib.import_module("ray.serve")
    from pfdiff.serving.on_ray import Where, deployed
    from pfdiff.serving.run import names_of

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = Where("local", replicas, "127.0.0.1", port)
    opening = Opening("cpu", "onnxruntime", threads=1)
    with cluster(), deployed(names_of(engines), opening, Limits(max_wait_ms=2), where, lambda line: None):
        client = Client(port)
        yield client
        client.close()
