"""A local Ray cluster with the application, for the tests that run here and there."""

from __future__ import annotations

import importlib
import importlib.util
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pfdiff.serving.limits import Limits
from pfdiff.serving.worker import Opening

from ..small.serving import Client


def check_installed() -> None:
    """What `ray[serve]` brings beyond ray itself."""
    for name in ("ray", "aiohttp", "grpc", "watchfiles"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is missing: pip install 'pfdiff[serve-ray]'")


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
    with deployed(names_of(engines), opening, Limits(max_wait_ms=2), where, lambda line: None):
        client = Client(port)
        yield client
        client.close()
