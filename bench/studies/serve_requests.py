"""What a request costs the server: `python -m pfdiff.bench.studies.serve_requests --work FOLDER`.

serve_requests.json: `pfdiff serve` over an engine whose network is one multiplication, one sample [1, 28, 28] a
request, by clients that ask again as soon as they are answered. CPU milliseconds (user and system) a request, of the
server and of its clients, and of a sample of `engine.sample` in the same batches, which is what sampling itself costs:
medians of ROUNDS. Wall time says little on a machine that others use; `load_average` says how many did.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

import pfdiff

from ..measuring.machine import describe, folder_name
from .serve_load import LABELS, MAX_WAIT_MS, NFE, QUEUE, ask, cpu_seconds, in_process, server

CLIENTS = (8, 32)
BUCKET = 8
ROUNDS = 5
WARM = 20  # requests of each client before anything is counted
IN_PROCESS_S = 0.5
SHAPE = (1, 28, 28)


@final
class Nothing(torch.nn.Module):
    """As little as a network can do with its inputs."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return x * (0.1 + 0.0 * (t + label).reshape(-1, 1, 1, 1))


def build(path: Path) -> None:
    """The engine, with the buckets 1 and 8."""
    label = pfdiff.Condition("label", "int64", default=0, low=0, high=LABELS - 1)
    described: dict[str, Any] = {"shape": SHAPE, "schedule": "linear:1000", "prediction": "eps"}
    network = pfdiff.Network(Nothing().eval(), **described, conditions={"label": label})
    settings: dict[str, Any] = {"grid": "uniform", "basis": "eps", "batch": [1, BUCKET], "out": path}
    pfdiff.build(network, [NFE], "pfdiff:k=2,l=1", **settings).close()


async def asked(port: int, clients: int, requests: int) -> None:
    """All answers of `clients` that ask `requests` times each."""

    async def client(seed: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(requests):
            status, _, body = await ask(reader, writer, seed)
            if status != 200:
                raise RuntimeError(f"{status}: {body[:300]!r}")
        writer.close()

    await asyncio.gather(*(client(seed) for seed in range(clients)))


def measure(engine: pfdiff.Engine, port: int, pid: int, clients: int, requests: int) -> dict[str, Any]:
    """Of `requests` in each round, in turn with the engine in this process."""
    each = max(1, requests // clients)
    rows: list[tuple[float, ...]] = []
    others = os.getloadavg()[0]
    asyncio.run(asked(port, clients, WARM))
    for _ in range(ROUNDS):
        alone = in_process(engine, BUCKET, IN_PROCESS_S)[1]
        wall, own, its = time.perf_counter(), time.process_time(), cpu_seconds(pid)
        asyncio.run(asked(port, clients, each))
        spent = cpu_seconds(pid) - its, time.process_time() - own, time.perf_counter() - wall
        rows.append((alone, *(1e3 * one / (each * clients) for one in spent)))
    sample, served, client, wall_ms = np.median(rows, axis=0)
    found = {
        "clients": clients,
        "requests": each * clients * ROUNDS,
        "cpu_ms_of_a_request": {"server": served, "client": client},
        "cpu_ms_of_a_sample_in_process": sample,
        "server_cpu_ms_by_round": [row[1] for row in rows],
        "requests_per_second": 1e3 / wall_ms,
        "load_average": [others, os.getloadavg()[0]],
    }
    print(json.dumps(found), flush=True)
    return found


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pfdiff.bench.studies.serve_requests", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--work", type=Path, required=True, help="a folder for the engine")
    parser.add_argument("--requests", type=int, default=2000, help="of each round")
    parser.add_argument("--out", type=Path, help="default: bench/results/<machine> beside this file")
    given = parser.parse_args(words)
    given.work.mkdir(parents=True, exist_ok=True)
    path = given.work / "nothing.engine"
    build(path)
    with pfdiff.load(path) as engine, server(path) as (port, pid):
        rows = [measure(engine, port, pid, clients, given.requests) for clients in CLIENTS]
        ran = {"engine": engine.description, "buckets": engine.batch, "nfe": NFE}
    found = {**ran, "queue": QUEUE, "max_wait_ms": MAX_WAIT_MS, "loads": rows, "machine": describe()}
    folder = given.out or Path(__file__).parents[1] / "results" / folder_name()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "serve_requests.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(folder / "serve_requests.json", flush=True)


if __name__ == "__main__":
    main()
