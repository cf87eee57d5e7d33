"""What a request costs `pfdiff serve` beside the network: `python -m pfdiff.bench.studies.serve_requests`.

serve_requests.json: the whole server, in a process of its own, over an engine that answers without work: at once, or
after a pause as a network needs it, in which a batch fills. One sample [1, 28, 28] a request, as .npz, by clients that
ask again as soon as they are answered. CPU time (user and system) of server and of clients, a request: the median of
ROUNDS. Wall time says little on a machine that others use; `load_average` says who did.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn

from ...engine.compiler.compile import compile
from ...engine.contract.contract import Condition, Contract, DecoderContract
from ..measuring.machine import describe, folder_name
from .serve_load import CLIENTS, MAX_WAIT_MS, NFE, QUEUE, ask, cpu_seconds

PAUSES_MS = (0.0, 5.0)  # of a batch
BUCKETS = (1, 8)
ROUNDS = 5
WARM = 20  # requests of each client before anything is counted
SHAPE = (1, 28, 28)
CONDITIONS = (
    Condition("label", "int64", default=0, low=0, high=9),
    Condition("guidance", "float32", default=3.0),
)


class Idle:
    """An engine of zeros, for the server."""

    contract = Contract(name="idle", shape=SHAPE, schedule="linear:1000", prediction="eps", conditions=CONDITIONS)
    decoder: DecoderContract | None = None
    precision, backend, device, description = "fp32", "none", "cpu", "zeros"
    provenance: Mapping[str, Any] = {}
    batch: tuple[int, ...] = BUCKETS

    def __init__(self, pause_ms: float) -> None:
        self.programs = {NFE: compile("ddim", "linear:1000", NFE, "uniform", "eps")}
        self._pause_s = pause_ms / 1e3

    def sample(self, *, seeds: Any = None, nfe: int | None = None, **given: Any) -> torch.Tensor:
        time.sleep(self._pause_s)
        return torch.zeros(len(seeds), *SHAPE)

    images = sample

    def close(self) -> None:
        pass


def serve(pipe: Connection, pause_ms: float) -> None:
    """The server, until its process is ended; its port goes into `pipe`."""
    from ...serving.app import make_app
    from ...serving.guard import Access
    from ...serving.hosts import LocalHost
    from ...serving.limits import Limits
    from ...serving.run import config, listen
    from ...serving.worker import Worker

    limits = Limits(QUEUE, MAX_WAIT_MS)
    worker = Worker("idle", lambda: Idle(pause_ms), limits)
    worker.start(lambda line: None)
    bound = listen("127.0.0.1", 0)
    bound.listen(max(CLIENTS))
    pipe.send(bound.getsockname()[1])
    uvicorn.Server(config(make_app({"idle": LocalHost(worker)}, limits, Access()))).run(sockets=[bound])


@contextmanager
def server(pause_ms: float) -> Iterator[tuple[int, int]]:
    """(port, process)."""
    spawning = multiprocessing.get_context("spawn")
    here, there = spawning.Pipe()
    process = spawning.Process(target=serve, args=(there, pause_ms))
    process.start()
    assert process.pid is not None
    try:
        yield here.recv(), process.pid
    finally:
        process.terminate()
        process.join()


async def asked(port: int, clients: int, requests: int) -> None:
    """All answers of `clients` that ask `requests` times each; 429 would be a mistake of this file."""

    async def client(seed: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(requests):
            status, _, body = await ask(reader, writer, seed)
            if status != 200:
                raise RuntimeError(f"{status}: {body[:300]!r}")
        writer.close()

    await asyncio.gather(*(client(seed) for seed in range(clients)))


def measure(clients: int, pause_ms: float, requests: int) -> dict[str, Any]:
    """Of `requests` for each number of clients together."""
    each = max(1, requests // clients)
    rows: list[tuple[float, float, float]] = []
    others = os.getloadavg()[0]
    with server(pause_ms) as (port, pid):
        asyncio.run(asked(port, clients, WARM))
        for _ in range(ROUNDS):
            wall, own, its = time.perf_counter(), time.process_time(), cpu_seconds(pid)
            asyncio.run(asked(port, clients, each))
            rows.append((cpu_seconds(pid) - its, time.process_time() - own, time.perf_counter() - wall))
    server_s, clients_s, wall_s = np.median(rows, axis=0) / (each * clients)
    found = {
        "clients": clients,
        "pause_ms": pause_ms,
        "requests": each * clients * ROUNDS,
        "cpu_ms_of_a_request": {"server": 1e3 * server_s, "clients": 1e3 * clients_s},
        "server_cpu_ms_by_round": [1e3 * row[0] / (each * clients) for row in rows],
        "requests_per_second": 1 / wall_s,
        "load_average": [others, os.getloadavg()[0]],
    }
    print(json.dumps(found), flush=True)
    return found


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pfdiff.bench.studies.serve_requests", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--requests", type=int, default=2000, help="of each round")
    parser.add_argument("--out", type=Path, help="default: bench/results/<machine> beside this file")
    given = parser.parse_args(words)
    rows = [measure(clients, pause, given.requests) for pause in PAUSES_MS for clients in CLIENTS if clients <= QUEUE]
    found = {"buckets": BUCKETS, "queue": QUEUE, "max_wait_ms": MAX_WAIT_MS, "loads": rows, "machine": describe()}
    folder = given.out or Path(__file__).parents[1] / "results" / folder_name()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "serve_requests.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(folder / "serve_requests.json", flush=True)


if __name__ == "__main__":
    main()
