"""Loading an engine opens no socket, and writes nothing outside the cache folder."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pfdiff.engine.bulk.on_ray import Actor

from ..small.engine import write_engine
from .test_artifact import environment

LOAD = """
import sys, time
import pfdiff

def see(event, arguments):
    if event.startswith("socket."):
        sys.exit(f"{event} {arguments}")

sys.addaudithook(see)
for backend in ("onnxruntime", "auto"):
    with pfdiff.load(sys.argv[1], backend=backend) as engine:
        engine.sample(seeds=[1], nfe=4)
time.sleep(0.3)
"""


def alone(home: Path, **more: str) -> dict[str, str]:
    """This environment without what says where to write, and without the variable that pfdiff sets itself."""
    kept = {name: value for name, value in environment().items() if not name.startswith(("XDG_", "ORT_"))}
    return {**kept, "HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1", **more}


def test_a_load_writes_into_the_cache_folder_only(tmp_path: Path) -> None:
    """ONNX Runtime 1.29 and later would write a device id and a database."""
    write_engine(tmp_path / "e")
    home = tmp_path / "home"
    home.mkdir()
    before = sorted((tmp_path / "e").rglob("*"))
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path / "e")], env=alone(home), check=True)
    written = [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]
    assert all(name.startswith(".cache/pfdiff/") for name in written), written
    assert sorted((tmp_path / "e").rglob("*")) == before
    assert {path.name for path in tmp_path.iterdir()} == {"e", "home"}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_load_opens_no_socket(tmp_path: Path) -> None:
    write_engine(tmp_path / "e")
    (tmp_path / "home").mkdir()
    trace = tmp_path / "trace"
    # A signal stops what it is sent to; seccomp keeps all other calls at full speed.
    strace = [
        "strace",
        "--seccomp-bpf",
        "-f",
        "-qq",
        "-e",
        "trace=socket,connect,sendto",
        "-e",
        "signal=none",
        "-o",
        str(trace),
    ]
    done = subprocess.run(
        [*strace, sys.executable, "-c", LOAD, str(tmp_path / "e")],
        env=alone(tmp_path / "home"),
        check=False,
        capture_output=True,
        text=True,
    )
    if "PTRACE" in done.stderr or "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    assert trace.read_text() == ""


def test_a_worker_of_ray_switches_telemetry_off_before_anything_else(tmp_path: Path) -> None:
    """A worker gets the class of its actor by name, and so imports the package."""
    code = "import os, pickle, sys; pickle.loads(sys.stdin.buffer.read()); print(os.environ['ORT_DISABLE_TELEMETRY'])"
    sent = pickle.dumps(Actor)
    run = subprocess.run([sys.executable, "-c", code], input=sent, env=alone(tmp_path), capture_output=True, check=True)
    assert run.stdout.decode().strip() == "1"


def test_the_variable_is_set_before_onnxruntime_is_imported() -> None:
    assert os.environ["ORT_DISABLE_TELEMETRY"]
