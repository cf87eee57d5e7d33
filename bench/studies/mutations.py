"""Damaged inputs: `python -m pfdiff.bench.studies.mutations [--share 0.01] [--kinds engines,onnx] [--out FILE.json]`.

Thousands of inputs, each damaged at random and used. Each must work, with finite samples or a refusal, or end in one
clear error: EngineFileError, InputError or BackendError, one printable line of less than 300 characters, in less than
5 s and 1 GiB. Everything else is a fault and is listed with its seed. The same seed gives the same inputs.

Cases run in child processes, which are bounded and replaced when they die or hang.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pfdiff.engine.errors import BackendError, EngineFileError, InputError

from ..measuring.machine import describe
from .mutants.mutated_engines import Kind
from .mutants.mutated_inputs import KINDS

MOST_S, MOST_BYTES, LONGEST = 5.0, 1 << 30, 300
PATIENCE_S = 60.0  # after which a child is killed: a busy machine is no fault, an endless loop is
BLOCK = 250  # cases of a child
ROOM_BYTES = 4 << 30  # of a child: the machine is not filled before a fault is seen


def run_case(kind: Kind, seed: str) -> dict[str, Any]:
    """What became of one case: `outcome`, and `fault` if it should not have."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)  # of what makes the input, not of what reads it
    kind.damage(random.Random(seed))
    sys.setrecursionlimit(limit)
    before, start, processor = _peak_bytes(), time.monotonic(), time.process_time()
    line, fault = "", ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = "used" if kind.use() else "not finite"
            fault = "not finite" if outcome == "not finite" else ""
    except (EngineFileError, InputError, BackendError) as error:
        outcome, line = type(error).__name__, str(error).replace(str(kind.folder), "")
        if not line.isprintable() or not 0 < len(line) < LONGEST:
            fault = f"a message of {len(line)} characters: {line[:400]!r}"
    except BaseException as error:
        outcome = "another exception"
        fault = f"{type(error).__name__}: {str(error)[:300]!r} at {_where(error)}"
    wall_s, cpu_s, grown = time.monotonic() - start, time.process_time() - processor, _peak_bytes() - before
    if min(wall_s, cpu_s) > MOST_S:  # a busy machine makes the wall clock slow
        fault = fault or f"{cpu_s:.1f} s"
    if grown > MOST_BYTES:
        fault = fault or f"{grown >> 20} MiB"
    return {"outcome": outcome, "fault": fault, "cpu_s": cpu_s, "grown": grown, "length": len(line)}


def _where(error: BaseException) -> str:
    trace, places = error.__traceback__, []
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return " < ".join(reversed(places[-4:]))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


# Child processes.
def _child(name: str, seeds: list[str], write: int) -> None:
    """Runs the cases and writes a line before and after each."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    held = (
        int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize() if sys.platform == "linux" else 0
    )
    resource.setrlimit(resource.RLIMIT_DATA, (held + ROOM_BYTES, held + ROOM_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        (place := Path(folder, "input")).mkdir()
        kind = KINDS[name](place)
        for number, seed in enumerate(seeds):
            os.write(write, f"{number}\n".encode())
            os.write(write, f"{json.dumps(run_case(kind, seed))}\n".encode())


def run_cases(name: str, seeds: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(seed, what became of it) of every case, each block of them in a child of its own."""
    while seeds:
        block = seeds[:BLOCK]
        done = 0
        for found in _block(name, block):
            yield block[done], found
            done += 1
        seeds = seeds[max(done, 1) :]


def _block(name: str, seeds: list[str]) -> Iterator[dict[str, Any]]:
    """The outcomes in order; a child that dies or hangs has its case as the last."""
    read, write = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            _child(name, seeds, write)
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    text, begun = b"", False
    with os.fdopen(read, "rb", buffering=0) as lines:
        while True:
            ready, _, _ = select.select([lines], [], [], PATIENCE_S)
            part = lines.read(1 << 16) if ready else b""
            if not part:
                break
            *whole, text = (text + part).split(b"\n")
            for line in whole:
                begun = line.isdigit()
                if not begun:
                    yield json.loads(line)
        if not ready:
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not ready or status:
        fault = f"more than {PATIENCE_S:.0f} s" if not ready else f"the process ended with status {status}"
        if not begun:
            raise RuntimeError(f"{name}: {fault} before any case; run it alone to see why")
        yield {"outcome": "the process died", "fault": fault, "cpu_s": PATIENCE_S, "grown": 0, "length": 0}


def study(name: str, seed: int, share: float) -> dict[str, Any]:
    """The counts of one kind, and its faults."""
    count = max(1, round(share * KINDS[name].count))
    outcomes: Counter[str] = Counter()
    faults: list[dict[str, str]] = []
    slowest, largest, longest = 0.0, 0, 0
    for case, found in run_cases(name, [f"{name} {seed} {number}" for number in range(count)]):
        outcomes[found["outcome"]] += 1
        slowest, largest = max(slowest, found["cpu_s"]), max(largest, found["grown"])
        longest = max(longest, found["length"])
        if found["fault"]:
            faults.append({"seed": case, "fault": found["fault"]})
    return {
        "cases": count,
        "outcomes": dict(sorted(outcomes.items())),
        "faults": len(faults),
        "slowest_s": round(slowest, 2),
        "largest_mib": largest >> 20,
        "longest_message": longest,
        "listed": faults[:100],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the cases of a whole run")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    kinds = {}
    for name in arguments.kinds.split(","):
        kinds[name] = study(name, arguments.seed, arguments.share)
        shown = {key: value for key, value in kinds[name].items() if key != "listed"}
        print(f"{name}: {json.dumps(shown)}", flush=True)
        for one in kinds[name]["listed"]:
            print(f"  {one['seed']}: {one['fault']}", flush=True)
    if arguments.out:
        content = {"machine": describe(), "seed": arguments.seed, "share": arguments.share, "kinds": kinds}
        arguments.out.write_text(f"{json.dumps(content, indent=1)}\n")
    sys.exit(any(found["faults"] for found in kinds.values()))


if __name__ == "__main__":
    main()
