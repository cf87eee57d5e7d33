"""`pfdiff serve`: engines behind HTTP, with a page to play with."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from ..engine.errors import InputError
from .arguments import options

SERVED_EXTRA = "pip install 'pfdiff[serve]'"

Engines = Annotated[list[Path], typer.Argument(metavar="ENGINE...", help="Engine directories, each by its name.")]
Host = Annotated[str, typer.Option("--host", help="0.0.0.0 for the network; then give an API key.")]
Port = Annotated[int, options.parsed(options.natural, "--port", "0: any that is free.")]
MaxWaitMs = Annotated[float, options.parsed(options.number, "--max-wait-ms", "How long requests wait for others.")]
Queue = Annotated[int, options.parsed(options.integer, "--queue", "Samples that may wait.")]
ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", envvar="PFDIFF_API_KEY", help="What clients send as Bearer.", show_envvar=True),
]
RayAddress = Annotated[str | None, options.valued("ADDRESS", "--ray", "By Ray Serve: local, auto or HOST:PORT.")]
Replicas = Annotated[int | None, options.parsed(options.integer, "--replicas", "On Ray; default: as many as needed.")]


def serve(
    engines: Engines,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    device: options.Device = "auto",
    backend: options.Backend = "auto",
    threads: options.Threads = None,
    max_wait_ms: MaxWaitMs = 5.0,
    queue: Queue = 64,
    api_key: ApiKey = None,
    ray: RayAddress = None,
    replicas: Replicas = None,
) -> None:
    """Answer HTTP requests for samples, with a page to play with; SIGTERM lets running requests finish."""
    from .output.progress import stages

    try:
        from ..serving import run
        from ..serving.limits import Limits
        from ..serving.worker import Opening
    except ImportError as error:
        raise InputError(f"{error.name} is not installed: {SERVED_EXTRA}") from None
    if replicas is not None and ray is None:
        raise InputError(f"--replicas {replicas} without --ray; add --ray local, auto or HOST:PORT")
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""):
        raise InputError("the API key is empty or has other letters than printable ASCII; choose another")
    limits, opening = Limits(queue, max_wait_ms), Opening(device, backend, threads)
    named = run.names_of(engines)
    if ray is not None:
        from ..serving import on_ray

        where = on_ray.Where(ray, replicas, host, port)
        _warn_of_open_door(host, api_key)
        with ExitStack() as stack:
            with stages() as progress:
                running = on_ray.deployed(named, opening, limits, where, progress, api_key=api_key)
                url = stack.enter_context(running)
            _announce(list(named), url)
            on_ray.wait_for_signal()
        return
    with run.listen(host, port) as bound:
        _warn_of_open_door(host, api_key)
        with stages() as progress:
            workers = run.load_workers(named, opening, limits, progress)
        address = run.url_of(host, bound.getsockname()[1])
        run.serve(workers, limits, bound, api_key=api_key, ready=lambda: _announce(list(workers), address))


def _warn_of_open_door(host: str, api_key: str | None) -> None:
    from ..serving.run import is_loopback

    if not is_loopback(host) and api_key is None:
        print(f"pfdiff: {host} can be reached by others and there is no --api-key: anybody may sample", file=sys.stderr)


def _announce(names: list[str], address: str) -> None:
    print(f"{', '.join(names)}: {address}", flush=True)
