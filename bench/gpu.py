"""`make gpu`: everything that only a GPU can show, in one command and under eight minutes.

Runs with the Python that it is started by and what is installed there: torch, triton, onnx, pytest, pytest-benchmark.
Nothing is installed and nothing is fetched; the checkout is importable through a link in a temporary folder. First
correctness (tests/gpu), then figures (bench/suite/test_gpu_*.py), each part in a process of its own with a limit of its
own, so that a part that fails or hangs costs nobody else's results. They go to $OUT, or to bench/results/<device>/.

Exit status: 0, 1 when a part failed, 2 without a GPU.
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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOTAL_SECONDS = 465
GRACE_SECONDS = 30  # between the time when no new measurement starts and the interruption of a part
INTERRUPTED_SECONDS = 10  # for an interrupted part to write what it has

# name, arguments, seconds at most. Figures are written as NAME.json, the outcome of tests as NAME.xml.
PARTS: tuple[tuple[str, tuple[str, ...], int], ...] = (
    ("sampler_tests", tuple(f"tests/gpu/test_{name}_gpu.py" for name in ("sampler", "decoder", "tensorrt")), 120),
    ("kernel_tests", ("tests/gpu/test_kernels_gpu.py",), 100),
    ("step", ("bench/suite/test_gpu_step.py",), 60),
    ("sampler", ("bench/suite/test_gpu_sampler.py",), 150),
    ("peers", ("bench/suite/test_gpu_peers.py",), 150),
)
PROBE = """
import json, torch
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "available": torch.cuda.is_available(),
    "name": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    "capability": torch.cuda.get_device_capability() if torch.cuda.is_available() else None,
    "memory_bytes": torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None}))
"""


def main() -> int:
    """Run every part; print and write what came of them."""
    started = time.time()
    device = _device()
    if isinstance(device, str):
        print(f"make gpu: {device}", file=sys.stderr)
        return 2
    folder = Path(os.environ.get("OUT") or ROOT / "bench" / "results" / _slug(device["name"]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tensorrt.jsonl").unlink(missing_ok=True)
    outcome: dict[str, Any] = {"device": device, "commit": _commit(), "parts": {}}
    with tempfile.TemporaryDirectory(prefix="pfdiff-gpu-") as temporary, open(folder / "gpu.log", "wb") as log:
        os.symlink(ROOT, Path(temporary, "pfdiff"), target_is_directory=True)
        for name, arguments, limit in PARTS:
            left = TOTAL_SECONDS - (time.time() - started)
            seconds = min(limit, left)
            if seconds < 2 * GRACE_SECONDS:
                outcome["parts"][name] = {"status": "no time left"}
            else:
                begun = time.time()
                status = _run(name, arguments, seconds, Path(temporary), folder, log)
                outcome["parts"][name] = {"status": status, "seconds": round(time.time() - begun, 1)}
                print(f"{name}: {status}, {time.time() - begun:.0f} s", flush=True)
            outcome["seconds"] = round(time.time() - started, 1)
            (folder / "gpu.json").write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    print("\n".join([*_failures(folder), *_table(folder), f"results in {folder}"]))
    return 0 if all(part["status"] == "passed" for part in outcome["parts"].values()) else 1


def _run(name: str, arguments: tuple[str, ...], seconds: float, temporary: Path, folder: Path, log: Any) -> str:
    """One part in its own process group; how it ended."""
    words = [sys.executable, "-m", "pytest", "-q", "-W", "default", "-m", "gpu", *arguments]
    words += ["-p", "no:cacheprovider", "-p", "pytest_benchmark.plugin"]
    if arguments[0].startswith("tests"):
        words += ["-v", f"--junitxml={folder / name}.xml"]
    else:
        words += [f"--benchmark-json={folder / name}.json", "--benchmark-disable-gc", "--benchmark-columns=median,iqr"]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(temporary), os.environ.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "200",  # or pytest cuts the reason of a failure off
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # whatever else that Python has stays out
        "PFDIFF_GPU": "1",
        "PFDIFF_GPU_RESULTS": str(folder),
        "PFDIFF_GPU_UNTIL": str(time.time() + seconds - GRACE_SECONDS),
    }
    log.write(f"\n==== {name}\n".encode())
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
    try:
        code = process.wait(timeout=seconds - INTERRUPTED_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # pytest ends and pytest-benchmark writes the figures there are
        try:
            process.wait(timeout=INTERRUPTED_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return f"stopped after {seconds:.0f} s"
    return {0: "passed", 1: "failed"}.get(code, f"pytest exit {code}")


def _interruptible() -> None:
    """What a shell starts in the background ignores interruptions, and so would every part."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


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


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _commit() -> str | None:
    try:
        head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    except OSError:  # no git on this machine
        return None
    return head.stdout.strip() or None if head.returncode == 0 else None


# What is printed at the end.
def _failures(folder: Path) -> list[str]:
    """One line for each test that failed, as pytest sums them up in the log."""
    lines = (folder / "gpu.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return [line[:200] for line in lines if line.startswith(("FAILED ", "ERROR "))]


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
        one = row["figures"]
        lines.append(
            f"{row['network']:8} {one['precision']} batch {one['batch']:2} {'graph' if row['graph'] else 'eager'} "
            f"{one['p50_ms']:9.3f} ms, {one['overhead']:.3f} x its evaluations, {row['launches']} launches, "
            f"{sum(row['waits'].values())} waits, {row['allocator_requests']} allocations"
        )
    for row in _rows(folder, "peers"):
        lines.append(
            f"{row['network']:8} {row['precision']} batch {row['batch']:2} {row['who']:22} {row['solver']:16} "
            f"{1e3 * row['median_s']:9.3f} ms"
        )
    return lines


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    try:
        found = json.loads((folder / f"{name}.json").read_bytes())["benchmarks"]
    except (OSError, ValueError, KeyError):
        return []
    rows = [{**one["extra_info"], "median_s": one["stats"]["median"]} for one in found]
    return [row for row in rows if row.get("machine")]


if __name__ == "__main__":
    sys.exit(main())
