"""The process of a command: what it loads, its streams closed, full or unread, its folder gone, its exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pfdiff.cli import main

COMMAND = f"{sys.executable} -m pfdiff"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("--version >&-", 0, ""),
        ("--version 2>&-", 0, ""),
        ("smaple >&-", 2, "pfdiff: No such command 'smaple'. Did you mean 'sample'?\n"),
        ("smaple >&- 2>&-", 2, ""),
    ],
)
def test_closed_streams_are_no_error(command: str, status: int, said: str) -> None:
    done = shell(f"{COMMAND} {command}")
    assert (done.returncode, done.stderr) == (status, said)


def test_a_full_disk_is_told() -> None:
    done = shell(f"{COMMAND} --version > /dev/full")
    assert done.returncode != 0
    assert "No space left on device" in done.stderr


def test_what_nobody_reads_leaves_no_traceback() -> None:
    done = shell(f"{COMMAND} --help | true")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("after", "status"), [("raise RuntimeError('mine')", 1), ("sys.exit(status)", 0), ("sys.exit(3)", 3)]
)
def test_the_status_is_of_whoever_called_main(after: str, status: int) -> None:
    code = f"import sys\nfrom pfdiff.cli import main\nstatus = main()\n{after}"
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True)
    assert done.returncode == status
    assert done.stdout.startswith("pfdiff ")


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "pfdiff", "smaple"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "pfdiff: No such command 'smaple'. Did you mean 'sample'?\n"


def test_a_deleted_directory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["info", "x.engine"]) == 2
    assert capsys.readouterr().err == "pfdiff: the current directory was deleted; change to another one\n"


def test_help_is_quick_and_loads_no_torch() -> None:
    code = """import sys
import pfdiff
from pfdiff.cli import app, main
main(["--help"])
print(sorted({"torch", "onnx", "onnxruntime", "numpy"} & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in ("build", "sample", "info", "bench", "demo"):
        assert command in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
