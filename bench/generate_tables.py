"""What a bulk run promises, measured: `python -m pfdiff.bench.generate_tables kills|overhead`.

Each part is one JSON file in bench/results/<machine>/, of the shipped network:

generate_kills.json      with 2 Ray workers of which two are killed, then the driver, and the command repeated; and in
                         this process: are all files identical, is every seed there once
generate_overhead.json   seconds in this process with one thread a core, and with one Ray worker a core, start included;
                         are all files identical

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

from .machine import describe, folder_name

WORKERS = 2
MANY = 20_000
WORKER_KILLS = (0.2, 0.4)  # after this share of all samples
DRIVER_KILL = 0.6


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pfdiff.bench.generate_tables", description=str(__doc__).splitlines()[0]
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
    folder = given.out or Path(__file__).parent / "results" / folder_name()
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
    """Seconds of whole runs into new folders: what a start costs, the rate once started, and both for MANY samples."""
    found: dict[str, Any] = {}
    for name, settings in {
        "in_process": {"threads": WORKERS},
        "ray": {"ray": "local", "workers": WORKERS, "threads": 1},
    }.items():
        marks: list[tuple[float, int]] = []

        def note(done: int, total: int, marks: list[tuple[float, int]] = marks) -> None:
            marks.append((time.perf_counter(), done))
            show(done, total)

        folder = work / f"{name}-{os.getpid()}"
        start = time.perf_counter()
        pfdiff.generate(engine, count, folder, nfe=nfe, progress=note, **settings)
        (first, begun), (last, done) = marks[1], marks[-1]
        seconds, rate = time.perf_counter() - start, (done - begun) / (last - first)
        begin = seconds - count / rate
        found[name] = {"seconds": seconds, "samples_per_second_once_started": rate, "seconds_of_the_start": begin}
        found[name][f"seconds_of_{MANY}"] = begin + MANY / rate
    for key in ("seconds", f"seconds_of_{MANY}"):
        found[f"ray_over_in_process_{key}"] = found["ray"][key] / found["in_process"][key]
    found["identical"] = tree(work / f"in_process-{os.getpid()}") == tree(work / f"ray-{os.getpid()}")
    return found


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
