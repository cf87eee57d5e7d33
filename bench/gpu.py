"""`make gpu`: everything that only a GPU can show, in calls of at most 150 seconds.

    make gpu PARTS=tests            correctness: tests/gpu, in two processes side by side
    make gpu PARTS=step,sampler     the step kernel against copies; whole samples against their evaluations
    make gpu PARTS=peers            the same samples by others
    make gpu                        all of them
    python bench/gpu.py --table FOLDER      without a GPU: the record and the table of what stands in FOLDER

Runs with the Python that it is started by and what is installed there: torch, triton, onnx, pytest, pytest-benchmark.
Nothing is installed and nothing is fetched; the checkout is importable through a link in a temporary folder. Each part
is a process of its own with a limit of its own, so that a part that fails or hangs costs nobody else's results. They go
to $OUT, or to bench/results/<device>/. A part writes NAME.jsonl: first what it runs on, then a line for each test and
row as soon as it is there (`gpu_rows`), last how it ended, so a part that is killed keeps what it had. gpu.json holds
the parts of all calls whose files stand in the folder.

Exit status: 0, 1 when a part failed, 2 without a GPU or for a wrong name.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

ROOT = Path(__file__).resolve().parents[1]  # here, since this file is started without the package
INTERRUPTED_SECONDS = 20  # for an interrupted part to end: an interruption is noticed between two calls of C


@final
@dataclass(frozen=True)
class Part:
    """A process of pytest: what it runs, and after how many seconds it is interrupted."""

    name: str
    files: tuple[str, ...]
    seconds: int


TESTS = tuple(f"tests/gpu/test_{name}_gpu.py" for name in ("sampler", "calls", "decoder", "network", "tensorrt"))
# What PARTS names. The parts of one name run side by side.
CALLS: dict[str, tuple[Part, ...]] = {
    "tests": (Part("sampler_tests", TESTS, 115), Part("kernel_tests", ("tests/gpu/test_kernels_gpu.py",), 115)),
    "step": (Part("step", ("bench/suite/test_gpu_step.py",), 45),),
    "sampler": (Part("sampler", ("bench/suite/test_gpu_sampler.py",), 100),),
    "peers": (Part("peers", ("bench/suite/test_gpu_peers.py",), 145),),
}
PROBE = """
import json, torch
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "available": torch.cuda.is_available(),
    "name": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    "capability": torch.cuda.get_device_capability() if torch.cuda.is_available() else None,
    "memory_bytes": torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None}))
"""


def main(words: Sequence[str]) -> int:
    """Run the calls that `words` names; print and write what came of them."""
    if words and words[0] == "--table":
        folder = Path(words[1]) if len(words) == 2 else None
        if folder is None or not folder.is_dir():
            print(f"make gpu: {' '.join(words)}, expected --table and a folder of results", file=sys.stderr)
            return 2
        write_record(folder)
        print(*_failures(folder), *_table(folder), sep="\n")
        return 0
    names = [name for word in words for name in word.split(",") if name] or list(CALLS)
    unknown = [name for name in names if name not in CALLS]
    if unknown:
        print(f"make gpu: PARTS={unknown[0]}, expected some of {','.join(CALLS)}", file=sys.stderr)
        return 2
    device = _device()
    if isinstance(device, str):
        print(f"make gpu: {device}", file=sys.stderr)
        return 2
    folder = Path(os.environ.get("OUT") or ROOT / "bench" / "results" / slug(device["name"]))
    folder.mkdir(parents=True, exist_ok=True)
    statuses: list[str] = []
    head = {"device": device, "commit": _commit()}
    with tempfile.TemporaryDirectory(prefix="pfdiff-gpu-") as temporary, open(folder / "gpu.log", "ab") as log:
        os.symlink(ROOT, Path(temporary, "pfdiff"), target_is_directory=True)
        for name in names:
            running = [(part, *_start(part, Path(temporary), folder, log, head)) for part in CALLS[name]]
            for part, process, begun in running:
                status = _finish(process, begun + part.seconds)
                seconds = time.time() - begun
                _append(folder / f"{part.name}.jsonl", {"status": status, "seconds": round(seconds, 1)})
                print(f"{part.name}: {status}, {seconds:.0f} s", flush=True)
                statuses.append(status)
            write_record(folder)
    print(*_failures(folder), *_table(folder), f"results in {folder}", sep="\n")
    return 0 if all(status == "passed" for status in statuses) else 1


def _start(
    part: Part, temporary: Path, folder: Path, log: Any, head: dict[str, Any]
) -> tuple[subprocess.Popen[bytes], float]:
    """One part in a process group of its own, and when it began."""
    words = [sys.executable, "-m", "pytest", "-q", "-W", "default", "-m", "gpu", *part.files]
    words += ["-p", "no:cacheprovider", "-p", "pytest_benchmark.plugin", "-p", "pfdiff.bench.gpu_rows"]
    words += ["--benchmark-disable-gc", "--benchmark-columns=median,iqr"]
    rows, begun = folder / f"{part.name}.jsonl", time.time()
    rows.unlink(missing_ok=True)
    _append(rows, {**head, "part": part.name, "begun": round(begun)})
    if "tests/gpu/test_tensorrt_gpu.py" in part.files:
        (folder / "tensorrt.jsonl").unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(temporary), os.environ.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "200",  # or pytest cuts the reason of a failure off
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # whatever else that Python has stays out
        "PFDIFF_GPU": "1",
        "PFDIFF_GPU_RESULTS": str(folder),
        "PFDIFF_GPU_ROWS": str(rows),
        "PFDIFF_GPU_UNTIL": str(begun + part.seconds - INTERRUPTED_SECONDS),
    }
    log.write(f"\n==== {part.name}\n".encode())
    log.flush()
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_interruptible,
    )
    return process, begun


def _finish(process: subprocess.Popen[bytes], end: float) -> str:
    """How a part ended; INTERRUPTED_SECONDS before `end` it is interrupted, at `end` killed."""
    try:
        code = process.wait(timeout=max(0.0, end - INTERRUPTED_SECONDS - time.time()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=INTERRUPTED_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return "stopped: no time left"
    return {0: "passed", 1: "failed"}.get(code, f"pytest exit {code}")


def _interruptible() -> None:
    """What a shell starts in the background ignores interruptions, and so would every part."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _append(path: Path, line: dict[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _device() -> dict[str, Any] | str:
    """What torch says of the first GPU, or one line why there is none."""
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    if probe.returncode:
        reason = (probe.stderr.strip().splitlines() or ["no reason given"])[-1]
        return f"torch cannot be used by {sys.executable} ({reason})"
    found = json.loads(probe.stdout.strip().splitlines()[-1])
    if not found["available"]:
        build = f"CUDA {found['cuda']}" if found["cuda"] else "no CUDA"
        return f"no NVIDIA GPU found (torch {found['torch']}, built with {build}); run it on a machine with one"
    return found


def slug(name: str) -> str:
    """A device's name as its folder is called: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _commit() -> str | None:
    try:
        head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    except OSError:  # no git on this machine
        return None
    return head.stdout.strip() or None if head.returncode == 0 else None


# What came of it.
def write_record(folder: Path) -> None:
    """gpu.json: of every part whose file stands in the folder, where it ran, how it ended and how many tests did."""
    parts: dict[str, Any] = {}
    for part in (part for call in CALLS.values() for part in call):
        lines = _lines(folder, part.name)
        if not lines:
            continue
        head = next((line for line in lines if "begun" in line), {})
        end = next((line for line in lines if "status" in line), {"status": "killed", "seconds": None})
        outcomes = [line["outcome"] for line in lines if "outcome" in line]
        counted = {outcome: outcomes.count(outcome) for outcome in dict.fromkeys(outcomes)}
        parts[part.name] = {**head, **end, "tests": counted}
    record = json.dumps({"format": 2, "parts": parts}, indent=1)
    (folder / "gpu.json").write_text(record + "\n", encoding="utf-8")


def _lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """What a part has written; the last line of one that was killed may be cut off."""
    try:
        text = (folder / f"{name}.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """The figures of a part."""
    return [{**line["figures"], "median_s": line["median_s"]} for line in _lines(folder, name) if "figures" in line]


def _failures(folder: Path) -> list[str]:
    """One line for each test that failed."""
    parts = [part.name for call in CALLS.values() for part in call]
    failed = [line for name in parts for line in _lines(folder, name) if line.get("outcome") in ("failed", "error")]
    return [f"{line['outcome'].upper()} {line['test']} - {line['reason']}"[:200] for line in failed]


def _table(folder: Path) -> list[str]:
    """Lines for every figure that was written."""
    lines: list[str] = []
    copies: dict[int, float] = {}
    for row in _rows(folder, "step"):
        if row["kind"] in ("copy", "scale"):
            copies[row["state_mib"]] = max(row["gb_per_s"], copies.get(row["state_mib"], 0.0))
    for row in _rows(folder, "step"):
        share = row["gb_per_s"] / copies[row["state_mib"]] if row["state_mib"] in copies else float("nan")
        lines.append(
            f"step {row['kind']:5} {row['state_mib']:4} MiB {row['gb_per_s']:8.0f} GB/s "
            f"{100 * share:6.1f} % of the faster copy"
        )
    for row in _rows(folder, "sampler"):
        if "figures" in row:
            one = row["figures"]
            lines.append(
                f"{row['network']:8} {one['precision']} batch {one['batch']:2} {'graph' if row['graph'] else 'eager'} "
                f"{one['p50_ms']:9.3f} ms, {one['overhead']:.3f} x its evaluations"
            )
        else:
            lines.append(
                f"{row['network']:8} a call: {row['launches']} launches, {sum(row['waits'].values())} waits, "
                f"{sum(row['copies'].values())} copies, {row['allocator_requests']} allocations, "
                f"{row['host_us']:.0f} us on the host"
            )
    for row in _rows(folder, "peers"):
        error = "not compared" if row["error"] is None else f"error {row['error']:.1e}"
        lines.append(
            f"{row['network']:8} {row['precision']} batch {row['batch']:2} {row['who']:22} {row['solver']:16} "
            f"{1e3 * row['median_s']:9.3f} ms, {error}"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
