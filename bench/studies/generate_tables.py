"""What a bulk run promises, measured: `python -m pfdiff.bench.studies.generate_tables kills|overhead`.

Each part is one JSON file in bench/results/<machine>/, of the shipped network:

generate_kills.json      with 2 Ray workers of which two are killed, then the driver, and the command repeated; and in
                         this process: are all files identical, is every seed there once
generate_overhead.json   seconds with one Ray worker a core over those in one process with one thread a core, and in one
                         process a core; starts included; are all files identical

`kills` goes on where it was when it is stopped; `--work` says where.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pfdiff

from ..measuring.machine import RESULTS, describe, folder_name

WORKERS = 2
MANY = 20_000
WORKER_KILLS = (0.2, 0.4)  # after this share of all samples
DRIVER_KILL = 0.6


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pfdiff.bench.studies.generate_tables", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("part", choices=["kills", "overhead"])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--nfe", type=int, default=5)
    parser.add_argument("--work", type=Path, required=True, help="a folder for engine and samples")
    parser.add_argument("--out", type=Path, help="default: bench/results/<machine> beside this file")
    given = parser.parse_args(words)
    given.work.mkdir(parents=True, exist_ok=True)
    engine = given.work / "fashion.engine"
    settings: dict[str, Any] = {"grid": "uniform", "basis": "eps", "batch": [64], "out": engine}
    pfdiff.build(pfdiff.Network("fashion"), [given.nfe], **settings).close()
    measured = (killed if given.part == "kills" else overhead)(engine, given.count, given.nfe, given.work)
    common = {"network": "fashion", "nfe": given.nfe, "batch": 64, "count": given.count, "workers": WORKERS}
    folder = given.out or RESULTS / folder_name()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"generate_{given.part}.json"
    path.write_text(json.dumps({**common, **measured, "machine": describe()}, indent=1) + "\n", encoding="utf-8")
    print(path, flush=True)


def killed(engine: Path, count: int, nfe: int, work: Path) -> dict[str, Any]:
    """The files of both ways, and what was killed on one of them."""
    here, there, note = work / "here", work / "there", work / "killed.json"
    command = [sys.executable, "-m", "pfdiff", "generate", str(engine), "--count", str(count), "--nfe", str(nfe)]
    command += ["--out", str(there), "--ray", "local", "--workers", str(WORKERS)]
    if not note.exists():
        note.write_text(json.dumps(kill_during(command, there, count)))
    subprocess.run(command, check=True)
    pfdiff.generate(engine, count, here, nfe=nfe, progress=show)
    one, other = tree(here), tree(there)
    return {
        "killed": json.loads(note.read_text()),
        "files": len(one),
        "bytes": sum(path.stat().st_size for path in here.iterdir()),
        "sha256_of_hashes": hashlib.sha256(json.dumps(one).encode()).hexdigest(),
        "identical_files": sum(other.get(name) == value for name, value in one.items()),
        "only_in_one": sorted(set(one) ^ set(other)),
        "every_seed_once": seeds(there) == list(range(count)),
    }


def overhead(engine: Path, count: int, nfe: int, work: Path) -> dict[str, Any]:
    """Seconds of whole commands: in one process with a thread a core, in a process a core with half of the seeds each,
    and on Ray; what is left of each when a start is taken from it, and both for MANY samples."""
    half = count // 2
    ways = {
        "in_process": [["--count", str(count), "--threads", str(WORKERS)]],
        "two_processes": [["--count", str(half), "--first", str(first), "--threads", "1"] for first in (0, half)],
        "ray": [["--count", str(count), "--ray", "local", "--workers", str(WORKERS), "--threads", "1"]],
    }
    found: dict[str, Any] = {}
    folders = {name: [work / f"{name}-{os.getpid()}-{part}" for part in range(len(ways[name]))] for name in ways}
    for name, options in ways.items():
        base = [sys.executable, "-m", "pfdiff", "generate", str(engine), "--nfe", str(nfe), "--out"]
        commands = [[*base, str(out), *more] for out, more in zip(folders[name], options, strict=True)]
        found[name] = timed(commands, folders[name], count)
        print(name, found[name], flush=True)
    for name in ("in_process", "two_processes"):
        key = f"seconds_of_{MANY}"
        found[f"ray_over_{name}"] = found["ray"]["seconds"] / found[name]["seconds"]
        found[f"ray_over_{name}_of_{MANY}"] = found["ray"][key] / found[name][key]
    found["identical"] = tree(folders["in_process"][0]) == tree(folders["ray"][0])
    return found


def timed(commands: list[list[str]], folders: list[Path], count: int) -> dict[str, float]:
    """Run commands side by side that make `count` samples in `folders`; the rate is that from the first shards on."""
    start = time.perf_counter()
    running = [subprocess.Popen(command) for command in commands]
    marks = [(start, 0)]
    while any(one.poll() is None for one in running):
        done = sum(map(finished, folders))
        if done > marks[-1][1]:
            marks.append((time.perf_counter(), done))
        time.sleep(0.05)
    seconds = time.perf_counter() - start
    if any(one.returncode for one in running):
        raise RuntimeError(f"{commands[0]} ended with {running[0].returncode}")
    (first, begun), (last, done) = marks[1], marks[-1]
    rate = (done - begun) / (last - first)
    begin = seconds - count / rate
    return {
        "seconds": seconds,
        "samples_per_second_once_started": rate,
        "seconds_of_the_start": begin,
        f"seconds_of_{MANY}": begin + MANY / rate,
    }


# Killing.
def kill_during(command: list[str], out: Path, count: int) -> list[dict[str, Any]]:
    """Run a command on Ray until its driver is killed; two of its workers are killed before."""
    driver = subprocess.Popen(command)
    kills: list[dict[str, Any]] = []
    for share in WORKER_KILLS:
        wait_for(out, share * count, driver)
        worker = ray_workers(driver.pid)[0]
        os.kill(worker, signal.SIGKILL)
        kills.append({"what": "worker", "after": finished(out)})
    wait_for(out, DRIVER_KILL * count, driver)
    left = ray_workers(driver.pid)
    driver.kill()
    driver.wait()
    kills.append({"what": "driver", "after": finished(out)})
    while any(Path(f"/proc/{pid}").exists() for pid in left):  # its workers see that it is gone
        time.sleep(0.5)
    return kills


def ray_workers(driver: int) -> list[int]:
    """The processes of the pool of actors below a driver, by Ray's own titles. Linux only."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "stat").read_text().rpartition(")")[2].split()
            titles[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
            parents[int(folder.name)] = int(words[1])
        except OSError:
            continue  # it has ended
    found: list[int] = []
    for pid, title in titles.items():
        above = pid
        while above in parents and above != driver:
            above = parents[above]
        if above == driver and title.startswith("ray::") and "(Actor)" in title:
            found.append(pid)
    return sorted(found)


def wait_for(out: Path, samples: float, driver: subprocess.Popen[bytes]) -> None:
    """Return when so many samples are finished. Raises RuntimeError when the driver ends before."""
    while finished(out) < samples:
        if driver.poll() is not None:
            raise RuntimeError(f"the driver ended with {driver.returncode} at {finished(out)} samples")
        time.sleep(0.02)


def finished(out: Path) -> int:
    """Samples that the manifest lists."""
    try:
        return json.loads((out / "manifest.json").read_text())["finished"]
    except OSError:
        return 0


# Comparing.
def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def seeds(folder: Path) -> list[int]:
    """The seeds of every sample, in the order of the files."""
    from pyarrow import parquet

    return [
        seed
        for path in sorted(folder.glob("*.parquet"))
        for seed in parquet.read_table(path, columns=["seed"])["seed"].to_pylist()
    ]


def show(done: int, total: int) -> None:
    print(f"{done} of {total}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
