"""`pfdiff serve` under load: `python -m pfdiff.bench.studies.serve_load --work FOLDER`.

serve_load.json, of the shipped network on loopback, one sample a request, with two choices of buckets: with 8, 32 and
128 clients, each of which asks again as soon as it is answered (after a 429, when Retry-After says so)

* samples a second over those of `engine.sample` at the bucket that so many clients can fill: the median over ROUNDS in
  which load and comparison take turns, since a shared machine drifts,
* the time of an answer, p50 and p99, and the bound on it: (queue / bucket + 2) batches and the longest wait for others,
* answers that equal the in-process sample of their seed in a bucket bit for bit, or within 1e-6,
* statuses, and the server's memory in the quarters of the run,
* CPU time of an answer, of the server with its network and of all clients, and of a sample of `engine.sample`,
* seconds from the command until the page is there, of STARTS starts.

Clients, server and network share the machine, so the clients' time is part of the loss; `load_average` says who else
ran. What a request costs the server without a network: serve_requests.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np

import pfdiff

from ..measuring.machine import describe, folder_name

NFE = 8
ENGINES = ((1, 8), (1, 8, 32))  # buckets
QUEUE, MAX_WAIT_MS = 64, 5
CLIENTS = (8, 32, 128)
SEEDS = 256
ROUNDS = 6
STARTS = 3
LABELS = 10
TOLERANCE = 1e-6
Expected = dict[int, list[bytes]]


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pfdiff.bench.studies.serve_load", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--work", type=Path, required=True, help="a folder for the engine")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load")
    parser.add_argument("--out", type=Path, help="default: bench/results/<machine> beside this file")
    given = parser.parse_args(words)
    given.work.mkdir(parents=True, exist_ok=True)
    network = pfdiff.Network("fashion")
    loads: list[dict[str, Any]] = []
    page_s: list[float] = []
    description = ""
    for buckets in ENGINES:
        path = given.work / f"fashion{buckets[-1]}.engine"
        settings: dict[str, Any] = {"grid": "uniform", "basis": "eps", "batch": list(buckets), "out": path}
        pfdiff.build(network, [NFE], "pfdiff:k=2,l=1", **settings).close()
        page_s = page_s or [seconds_to_page(path) for _ in range(STARTS)]
        with pfdiff.load(path) as engine, server(path) as (port, pid):
            expected = expected_bytes(engine)
            loads += [measure(engine, port, pid, clients, given.seconds, expected) for clients in CLIENTS]
            description = engine.description
    found = {
        "network": "fashion",
        "engine": description,
        "nfe": NFE,
        "queue": QUEUE,
        "max_wait_ms": MAX_WAIT_MS,
        "seconds": given.seconds,
        "seconds_to_page": page_s,
        "loads": loads,
        "machine": describe(),
    }
    folder = given.out or Path(__file__).parents[1] / "results" / folder_name()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "serve_load.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(folder / "serve_load.json", flush=True)
    print(table(loads), flush=True)


def table(loads: Sequence[Mapping[str, Any]]) -> str:
    """The rows of docs/guides/serving.md, a column for each load, in Markdown."""

    def refused(one: Mapping[str, Any], status: str) -> int:
        return one["statuses"].get(status, 0)

    rows: dict[str, Callable[[Mapping[str, Any]], object]] = {
        "": lambda one: f"{one['clients']} clients",
        "batch sizes": lambda one: ", ".join(map(str, one["buckets"])),
        "samples a second / those of `engine.sample`, in the largest batch size these clients can fill": lambda one: (
            f"{one['share_of_in_process']:.2f}"
        ),
        "samples a second, median of six rounds": lambda one: f"{np.median(one['samples_per_second']):.0f}",
        "median time of an answer, s": lambda one: f"{one['p50_ms'] / 1e3:.2f}",
        "99th percentile, s": lambda one: f"{one['p99_ms'] / 1e3:.2f}",
        "bound on every wait, s": lambda one: f"{one['bound_ms'] / 1e3:.2f}",
        "answers": lambda one: sum(one["answers"].values()),
        "of them bit for bit those of the engine": lambda one: one["answers"].get("bit_for_bit", 0),
        "429": lambda one: refused(one, "429"),
        "other errors": lambda one: sum(one["statuses"].values()) - refused(one, "200") - refused(one, "429"),
        "CPU time of an answer, server with network, ms": lambda one: f"{one['cpu_ms_of_an_answer']['server']:.1f}",
        "CPU time of an answer, client, ms": lambda one: f"{one['cpu_ms_of_an_answer']['clients']:.2f}",
        "CPU time of a sample of `engine.sample`, ms": lambda one: f"{one['in_process_cpu_ms']:.1f}",
        "memory, last quarter / second quarter": lambda one: (
            f"{one['memory_bytes_by_quarter'][3] / one['memory_bytes_by_quarter'][1]:.3f}"
        ),
    }
    lines = [f"| {name} | {' | '.join(str(shown(one)) for one in loads)} |" for name, shown in rows.items()]
    lines.insert(1, "|---" + "|--:" * len(loads) + "|")
    return "\n".join(lines)


@contextmanager
def server(path: Path) -> Iterator[tuple[int, int]]:
    """(port, process) of `pfdiff serve` with the study's bounds."""
    command = [sys.executable, "-m", "pfdiff", "serve", str(path), "--port", "0", "--queue", str(QUEUE)]
    with subprocess.Popen([*command, "--max-wait-ms", str(MAX_WAIT_MS)], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        found = re.search(r":(\d+)$", running.stdout.readline().strip())
        try:
            if found is None:
                raise RuntimeError("the server did not start")
            yield int(found[1]), running.pid
        finally:
            running.terminate()


def seconds_to_page(path: Path) -> float:
    """From the start of the command to the last byte of the page."""
    start = time.perf_counter()
    with server(path) as (port, _), urllib.request.urlopen(f"http://127.0.0.1:{port}/") as page:
        page.read()
        return time.perf_counter() - start


# What must come back.
def expected_bytes(engine: pfdiff.Engine) -> Expected:
    """The float32 bytes of every seed's sample, as each bucket draws it."""
    held: Expected = {seed: [] for seed in range(SEEDS)}
    for bucket in engine.batch:
        for first in range(0, SEEDS, bucket):
            seeds = range(first, first + bucket)
            for seed, row in zip(seeds, draw(engine, seeds), strict=True):
                held[seed].append(row.tobytes())
    return held


def draw(engine: pfdiff.Engine, seeds: range) -> np.ndarray:
    return engine.sample(seeds=seeds, nfe=NFE, label=[seed % LABELS for seed in seeds]).numpy()


def in_process(engine: pfdiff.Engine, bucket: int, seconds: float) -> tuple[float, float]:
    """Samples a second of `engine.sample`, in batches of `bucket`, and CPU milliseconds a sample."""
    start, cpu = time.perf_counter(), time.process_time()
    count = 0
    while time.perf_counter() - start < seconds:
        draw(engine, range(bucket))
        count += bucket
    return count / (time.perf_counter() - start), 1e3 * (time.process_time() - cpu) / count


# One load.
@final
class Load:
    """Some clients, each of which asks again as soon as it is answered, and what came back to them."""

    def __init__(self, port: int, pid: int, clients: int, expected: Expected) -> None:
        """pid: of the server. expected: the samples of every seed that are right."""
        self.port, self.pid, self.clients, self.expected = port, pid, clients, expected
        rows = [np.frombuffer(one, np.float32) for held in expected.values() for one in held]
        self.scale = max(float(np.abs(row).max()) for row in rows)
        self.memory: list[int] = []
        self.statuses: Counter[int] = Counter()
        self.answer_ms: list[float] = []
        self.batch_ms: list[float] = []
        self.equal: Counter[str] = Counter()
        self.server_cpu_s = self.clients_cpu_s = 0.0

    def rate(self, seconds: float) -> float:
        """Answers a second."""
        start, before = time.perf_counter(), len(self.answer_ms)
        server, clients = cpu_seconds(self.pid), time.process_time()
        asyncio.run(self._run(start + seconds))
        self.server_cpu_s += cpu_seconds(self.pid) - server
        self.clients_cpu_s += time.process_time() - clients
        return (len(self.answer_ms) - before) / (time.perf_counter() - start)

    async def _run(self, end: float) -> None:
        await asyncio.gather(self._watch(end), *(self._client(first, end) for first in range(self.clients)))

    async def _client(self, seed: int, end: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        while time.perf_counter() < end:
            start = time.perf_counter()
            status, headers, body = await ask(reader, writer, seed)
            self.statuses[status] += 1
            if status == 429:
                await asyncio.sleep(float(headers["retry-after"]))
                continue
            self.answer_ms.append(1e3 * (time.perf_counter() - start))
            self.batch_ms.append(float(re.findall(r"sample;dur=([\d.]+)", headers["server-timing"])[0]))
            self.equal[compare(body, self.expected[seed], self.scale)] += 1
            seed = (seed + self.clients) % SEEDS
        writer.close()

    async def _watch(self, end: float) -> None:
        while time.perf_counter() < end:
            self.memory.append(resident_bytes(self.pid))
            await asyncio.sleep(0.5)

    def figures(self, bucket: int) -> dict[str, Any]:
        """Of all that was asked so far. bucket: of which the bound on the wait is made."""
        p50, p99 = np.percentile(self.answer_ms, (50, 99))
        longest = float(np.max(self.batch_ms))
        return {
            "p50_ms": float(p50),
            "p99_ms": float(p99),
            "batch_ms": {"median": float(np.median(self.batch_ms)), "max": longest},
            "bound_ms": (QUEUE / bucket + 2) * longest + MAX_WAIT_MS,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "answers": dict(self.equal),
            "cpu_ms_of_an_answer": {
                "server": 1e3 * self.server_cpu_s / len(self.answer_ms),
                "clients": 1e3 * self.clients_cpu_s / len(self.answer_ms),
            },
            "memory_bytes_by_quarter": [int(np.mean(part)) for part in np.array_split(self.memory, 4)],
        }


def measure(
    engine: pfdiff.Engine, port: int, pid: int, clients: int, seconds: float, expected: Expected
) -> dict[str, Any]:
    """The figures of one number of clients, in rounds in turn with the engine in this process."""
    bucket = max(size for size in engine.batch if size <= clients)
    others, fill = os.getloadavg()[0], batch_fill(port)
    load = Load(port, pid, clients, expected)
    alone: list[tuple[float, float]] = []
    served: list[float] = []
    for _ in range(ROUNDS):
        alone.append(in_process(engine, bucket, seconds / ROUNDS / 3))
        served.append(load.rate(seconds / ROUNDS))
    in_process_rates, in_process_cpu = map(list, zip(*alone, strict=True))
    found = {
        "buckets": engine.batch,
        "clients": clients,
        "bucket": bucket,
        "samples_per_second": served,
        "in_process_per_second": in_process_rates,
        "in_process_cpu_ms": float(np.median(in_process_cpu)),
        "share_of_in_process": float(np.median(np.divide(served, in_process_rates))),
        **load.figures(bucket),
        "load_average": [others, os.getloadavg()[0]],
        "batch_fill": float(np.divide(*np.subtract(batch_fill(port), fill))),
    }
    print(json.dumps(found), flush=True)
    return found


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seed: int
) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection that stays open: HTTP/1.1 by hand, which costs less than any client."""
    body = json.dumps({"seeds": [seed], "nfe": NFE, "conditions": {"label": seed % LABELS}, "format": "npz"}).encode()
    writer.write(
        b"POST /v1/samples HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    return int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


def compare(body: bytes, expected: list[bytes], scale: float) -> str:
    """bit for bit, rounding, or wrong. An .npz holds its arrays uncompressed."""
    if any(one in body for one in expected):
        return "bit_for_bit"
    row = np.load(io.BytesIO(body))["samples"].reshape(-1)
    nearest = min(float(np.abs(row - np.frombuffer(one, np.float32)).max()) for one in expected)
    return "within_1e-6" if nearest <= TOLERANCE * scale else "wrong"


def resident_bytes(pid: int) -> int:
    """Of a process. Linux only."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far. Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def batch_fill(port: int) -> tuple[float, float]:
    """(sum over all batches so far of the share of a bucket that each filled, their number)."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    total, count = (re.findall(rf"^pfdiff_batch_fill_{name}\S* (\S+)$", text, re.M) for name in ("sum", "count"))
    return (float(total[0]), float(count[0])) if count else (0.0, 0.0)


if __name__ == "__main__":
    main()
