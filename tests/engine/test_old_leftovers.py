"""What killed writers of earlier versions left beside a target goes with its next writer, and nothing else goes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pfdiff.engine.atomic import replacing, replacing_folder
from pfdiff.engine.old_leftovers import AFTER_S

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="process numbers are asked for otherwise")


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def make(path: Path, *, days: float = 2.0, held: tuple[str, ...] | None = None) -> Path:
    """A file, or a folder of files, that was last changed so long ago."""
    parts = [path]
    if held is None:
        path.write_bytes(b"x")
    else:
        path.mkdir()
        parts = [*(path / name for name in held), path]
        for part in parts[:-1]:
            part.write_bytes(b"x")
    then = time.time() - days * AFTER_S
    for part in parts:
        os.utime(part, (then, then))
    return path


def test_what_was_left_goes(tmp_path: Path, dead: int) -> None:
    left = [
        make(tmp_path / f".one.png.{dead}.partial"),
        make(tmp_path / f".run.{dead}.partial", held=("000000.png",)),
        make(tmp_path / f".sm_90.partial-{dead}", held=("step.cubin", "index.json")),
        make(tmp_path / ".one.onnx.a1_b2c3d", held=("one.onnx", "network.onnx.data")),
        make(tmp_path / ".one.onnx.zzzzzzzz", held=()),
    ]
    for name in ("one.png", "one.onnx"):
        with replacing(tmp_path / name) as part:
            part.write_bytes(b"new")
    for name in ("run", "sm_90"):
        with replacing_folder(tmp_path / name):
            pass
    assert not [path.name for path in left if path.exists()]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.onnx", "one.png", "run", "sm_90"]


def test_what_may_be_in_use_or_is_not_ours_stays(tmp_path: Path, dead: int) -> None:
    outside = make(tmp_path / "outside", held=("one.onnx",))
    stays = [
        make(tmp_path / f".one.onnx.{os.getpid()}.partial"),  # a process has this number
        make(tmp_path / f".one.onnx.{dead}.partial", days=0.5),  # another machine's, perhaps
        make(tmp_path / f".two.onnx.{dead}.partial"),
        make(tmp_path / ".one.onnx.abcdefgh", held=("one.onnx", "thesis.txt")),
        make(tmp_path / ".one.onnx.abcdefgi", days=0.5, held=("one.onnx",)),
        make(tmp_path / ".one.onnx.abcdefgj"),  # a file
        make(tmp_path / ".one.onnx.backup", held=("one.onnx",)),  # six letters
        make(tmp_path / f".one.onnx.{dead}.partial.txt"),
    ]
    link = tmp_path / ".one.onnx.linklink"
    link.symlink_to(outside)
    with replacing(tmp_path / "one.onnx") as part:
        part.write_bytes(b"new")
    assert [path for path in (*stays, link, outside / "one.onnx") if not path.exists()] == []
