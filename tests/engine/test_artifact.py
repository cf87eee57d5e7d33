"""The engine directory: what is written is read back, what was changed is refused by name, nothing is half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfdiff.engine import atomic
from pfdiff.engine.api import load
from pfdiff.engine.artifact import read_artifact, sha256_of, write_manifest
from pfdiff.engine.atomic import locked_for_build, replacing, replacing_folder, writing
from pfdiff.engine.errors import EngineFileError, InputError

from ..small.engine import CONTRACT, write_engine


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return write_engine(tmp_path / "small.engine").path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Reading back.
def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = write_engine(tmp_path / "e", batch=(8, 1), external=True)
    artifact = read_artifact(tmp_path / "e")
    assert artifact.contract == CONTRACT
    assert artifact.batch == (1, 8)
    assert {nfe: one.digest for nfe, one in artifact.programs.items()} == {
        nfe: one.digest for nfe, one in written.programs.items()
    }
    assert artifact.provenance == {"network": "small"}
    assert sorted(artifact.files) == ["network.onnx", "network.onnx.data"]
    assert names(tmp_path / "e") == ["engine.json", "network.onnx", "network.onnx.data"]


def test_external_data_is_loaded(tmp_path: Path) -> None:
    write_engine(tmp_path / "e", external=True)
    with load(tmp_path / "e") as loaded:
        assert loaded.sample(seeds=[1], nfe=4).shape == (1, 2, 3, 5)


def test_plans_are_no_part_of_the_engine(engine: Path) -> None:
    (engine / "plans").mkdir()
    (engine / "plans" / "gpu.plan").write_bytes(b"anything")
    assert sorted(read_artifact(engine).files) == ["network.onnx"]


# Refusals.
def edit(engine: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and sign it again, as a forger would."""
    content = json.loads((engine / "engine.json").read_text())
    change(content)
    content.pop("digest")
    from pfdiff.engine.artifact import _digest

    content["digest"] = _digest(content)
    (engine / "engine.json").write_text(json.dumps(content))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def name_file(name: str) -> Callable[[Path], object]:
    def change(engine: Path) -> None:
        (engine.parent / "outside").write_bytes(b"")
        record = {"sha256": sha256_of(engine.parent / "outside"), "bytes": 0}
        edit(engine, lambda content: content["files"].update({name: record}))

    return change


def replace_by_link(engine: Path) -> None:
    shutil.move(engine / "network.onnx", engine.parent / "elsewhere.onnx")
    (engine / "network.onnx").symlink_to(engine.parent / "elsewhere.onnx")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no such directory": (shutil.rmtree, "does not exist"),
    "no manifest": (lambda e: (e / "engine.json").unlink(), "has no engine.json"),
    "empty manifest": (lambda e: (e / "engine.json").write_bytes(b""), "damaged: not JSON"),
    "truncated manifest": (lambda e: os.truncate(e / "engine.json", 700), "damaged: not JSON"),
    "manifest of junk": (lambda e: (e / "engine.json").write_bytes(b"\xff\x00junk"), "damaged: not JSON"),
    "manifest is a list": (lambda e: (e / "engine.json").write_text("[]"), "expected an object"),
    "manifest nested too deep": (lambda e: (e / "engine.json").write_text("[" * 100_000), "damaged"),
    "another format": (lambda e: edit(e, lambda c: c.update(format=2)), "has format 2, this pfdiff reads 1"),
    "a changed number": (
        lambda e: (e / "engine.json").write_text((e / "engine.json").read_text().replace("0.5", "0.6", 1)),
        "its content has SHA-256",
    ),
    "a missing field": (lambda e: edit(e, lambda c: c.pop("batch")), "'batch' is missing"),
    "an unknown contract field": (
        lambda e: edit(e, lambda c: c["contract"].update(colour=1)),
        "unknown field 'colour'",
    ),
    "an unfit contract": (lambda e: edit(e, lambda c: c["contract"].update(prediction="y")), "prediction 'y'"),
    "numbers of another schedule": (
        lambda e: edit(e, lambda c: c.update(alphas=[0.9, 0.5])),
        "'alphas' are not the numbers of its schedule linear:1000",
    ),
    "a program without times": (lambda e: edit(e, lambda c: c["programs"]["4"].pop("times")), "not a program"),
    "a program under another NFE": (
        lambda e: edit(e, lambda c: c["programs"].update({"5": c["programs"]["4"]})),
        "program '5' has 4",
    ),
    "a program named by words": (lambda e: edit(e, lambda c: c["programs"].update(four={})), "'four' is not named"),
    "no programs": (lambda e: edit(e, lambda c: c["programs"].clear()), "0 programs"),
    "a batch of zero": (lambda e: edit(e, lambda c: c.update(batch=[0])), r"batch \[0\]"),
    "another precision": (lambda e: edit(e, lambda c: c.update(precision="fp16")), "precision 'fp16'"),
    "no network among the files": (lambda e: edit(e, lambda c: c["files"].clear()), "not among its files"),
    "a missing network": (lambda e: (e / "network.onnx").unlink(), "'network.onnx' is missing"),
    "a flipped bit": (
        lambda e: flip(e / "network.onnx"),
        "'network.onnx' has SHA-256 [0-9a-f]{12}, expected [0-9a-f]{12}",
    ),
    "a truncated network": (lambda e: os.truncate(e / "network.onnx", 10), "has 10 bytes, expected"),
    "a file above the directory": (name_file("../outside"), "outside its directory"),
    "a file below and above": (name_file("plans/../../outside"), "outside its directory"),
    "an absolute file": (name_file("/etc/hostname"), "outside its directory"),
    "a file with a drive": (name_file("C:outside"), "outside its directory"),
    "a file with a backslash": (name_file("..\\outside"), "outside its directory"),
    "a symbolic link": (replace_by_link, "is a symbolic link"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_was_changed_is_refused_in_one_line(engine: Path, case: str) -> None:
    change, message = BAD[case]
    change(engine)
    with pytest.raises(EngineFileError, match=message) as caught:
        read_artifact(engine)
    assert "\n" not in str(caught.value)


def test_a_file_is_no_engine(tmp_path: Path) -> None:
    (tmp_path / "e").write_text("x")
    with pytest.raises(EngineFileError, match="is not a directory"):
        read_artifact(tmp_path / "e")


@pytest.mark.parametrize("nfe", [5, True, 4.5, "4"])
def test_a_program_that_is_not_there_is_refused_by_name(engine: Path, nfe: Any) -> None:
    with pytest.raises(InputError, match=re.escape(f"nfe={nfe!r}, this engine has 4, 6; choose one of them")):
        read_artifact(engine).program(nfe)


def test_the_only_program_needs_no_name(engine: Path) -> None:
    artifact = read_artifact(engine)
    four: Any = np.int64(4)  # integers of NumPy too
    assert artifact.program(four) is artifact.programs[4]
    with pytest.raises(InputError, match="nfe is missing and this engine has several; choose one of 4, 6"):
        artifact.program()
    assert replace(artifact, programs={6: artifact.programs[6]}).program() is artifact.programs[6]


# Writing whole or not at all.
def test_a_directory_is_replaced_whole(engine: Path) -> None:
    with replacing_folder(engine) as folder:
        (folder / "new").write_text("x")
        assert "engine.json" in names(engine)
    assert names(engine) == ["new"]
    assert names(engine.parent) == ["small.engine"]


@pytest.mark.parametrize("cause", [KeyboardInterrupt(), RuntimeError("no")], ids=["interrupted", "failed"])
def test_after_a_failure_the_former_engine_stands(engine: Path, cause: BaseException) -> None:
    before = (engine / "engine.json").read_bytes()

    def build() -> None:
        with replacing_folder(engine) as folder:
            (folder / "half").write_text("x")
            raise cause

    with pytest.raises(type(cause)):
        build()
    assert (engine / "engine.json").read_bytes() == before
    assert names(engine.parent) == ["small.engine"]


def test_a_file_system_that_cannot_swap_renames_twice(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    with replacing_folder(engine) as folder:
        (folder / "new").write_text("x")
    assert names(engine) == ["new"]
    assert names(engine.parent) == ["small.engine"]


def test_a_failing_second_rename_brings_the_former_engine_back(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if ".building-" in str(source):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="Input/output error"), replacing_folder(engine):
        pass
    assert read_artifact(engine).batch == (1, 8)
    assert names(engine.parent) == ["small.engine"]


def test_what_a_killed_build_left_is_removed_by_the_next(engine: Path) -> None:
    code = "import sys, os, signal; from pathlib import Path\nfrom pfdiff.engine.atomic import replacing_folder\n"
    code += "with replacing_folder(Path(sys.argv[1])) as folder:\n"
    code += " (folder / 'half').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    killed = subprocess.run([sys.executable, "-c", code, str(engine)], check=False, env=environment())
    assert killed.returncode == -signal.SIGKILL
    assert len(names(engine.parent)) == 2
    read_artifact(engine)
    with replacing_folder(engine):
        pass
    assert names(engine.parent) == ["small.engine"]


def test_a_build_in_progress_is_left_alone(engine: Path) -> None:
    with replacing_folder(engine) as folder:
        (folder / "mine").touch()
        with replacing_folder(engine):
            pass
        assert names(folder) == ["mine"]


def test_a_folder_that_a_killed_build_had_moved_aside_comes_back(engine: Path) -> None:
    """Between the two renames of a file system that cannot swap."""
    engine.rename(engine.with_name(f".{engine.name}.former-01234567"))
    with pytest.raises(KeyboardInterrupt), replacing_folder(engine):
        raise KeyboardInterrupt
    assert read_artifact(engine).batch == (1, 8)
    assert names(engine.parent) == ["small.engine"]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "a[1].npz"  # no pattern
    target.write_text("former")

    def write(text: str, cause: BaseException | None) -> None:
        with replacing(target) as part:
            part.write_text(text)
            assert target.read_text() == "former"
            if cause:
                raise cause

    for cause in (KeyboardInterrupt(), RuntimeError("no")):
        with pytest.raises(type(cause)):
            write("half", cause)
        assert (target.read_text(), names(tmp_path)) == ("former", ["a[1].npz"])
    write("new", None)
    assert (target.read_text(), names(tmp_path)) == ("new", ["a[1].npz"])


def test_a_killed_writer_of_a_file_leaves_what_the_next_removes(tmp_path: Path) -> None:
    target = tmp_path / "a.npy"
    code = "import os, signal, sys; from pathlib import Path\nfrom pfdiff.engine.atomic import replacing\n"
    code += "with replacing(Path(sys.argv[1])) as part:\n part.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    killed = subprocess.run([sys.executable, "-c", code, str(target)], check=False, env=environment())
    assert killed.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    with replacing(target) as mine:
        with replacing(target) as other:  # the lock of a living writer keeps its file
            other.write_text("other")
        mine.write_text("mine")
        assert names(tmp_path) == sorted([mine.name, target.name])
    assert (target.read_text(), names(tmp_path)) == ("mine", ["a.npy"])


def test_writers_of_one_file_do_not_hinder_each_other(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"

    def write(number: int) -> None:
        with replacing(target, durable=False) as part:
            part.write_text(str(number) * 1000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(10, 74)))
    assert len({target.read_text()[i : i + 2] for i in range(0, 2000, 2)}) == 1
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_manifest_that_cannot_be_written_leaves_the_former(engine: Path) -> None:
    """A real failing write: the process may write no file above 1 KiB, as on a full disk."""
    code = "import resource, signal, sys\nfrom pfdiff.engine.artifact import read_artifact, write_manifest\n"
    code += "artifact = read_artifact(sys.argv[1]); signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)); write_manifest(artifact)"
    before = (engine / "engine.json").read_bytes()
    failed = subprocess.run(
        [sys.executable, "-c", code, str(engine)], check=False, env=environment(), capture_output=True, text=True
    )
    assert re.search(r"EngineFileError: cannot write engine '.*': File too large; nothing was changed", failed.stderr)
    assert (engine / "engine.json").read_bytes() == before
    assert names(engine) == ["engine.json", "network.onnx"]


def test_a_full_disk_is_one_line(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    artifact = read_artifact(engine)
    before = (engine / "engine.json").read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    message = "No space left on device; nothing was changed"
    with pytest.raises(EngineFileError, match=message):
        write_manifest(artifact)
    with pytest.raises(EngineFileError, match=message), writing(engine), replacing_folder(engine) as folder:
        (folder / "half").touch()
    assert (engine / "engine.json").read_bytes() == before
    assert names(engine) == ["engine.json", "network.onnx"]
    assert names(engine.parent) == ["small.engine"]


# Two writers.
def test_one_writer_at_a_time(tmp_path: Path) -> None:
    """Read, add, write: without the lock most of these additions are lost."""
    number, waits = tmp_path / "e", []
    number.write_text("0")
    (tmp_path / ".e.lock").touch()  # as a killed writer leaves it

    def add(_: int) -> None:
        with locked_for_build(number, waits.append):
            held = int(number.read_text())
            time.sleep(0.001)
            number.write_text(str(held + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(64)))
    assert number.read_text() == "64"
    assert set(waits) == {"waiting for another build of e"}
    assert names(tmp_path) == ["e"]


def test_a_link_and_what_it_names_have_one_lock(engine: Path) -> None:
    link = engine.with_name("link")
    link.symlink_to(engine)
    with locked_for_build(link, lambda line: None):
        assert names(engine.parent) == [".small.engine.lock", "link", "small.engine"]


def test_manifests_written_at_once_do_not_hinder_each_other(engine: Path) -> None:
    artifact = read_artifact(engine)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: write_manifest(artifact), range(40)))
    assert names(engine) == ["engine.json", "network.onnx"]
    read_artifact(engine)


def environment() -> dict[str, str]:
    """This process's environment, with the package that is tested on the path."""
    import pfdiff

    return {**os.environ, "PYTHONPATH": str(Path(next(iter(pfdiff.__path__))).parent)}
