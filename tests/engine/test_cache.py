"""The cache folder: where it is, that nobody else is in it, and that work goes on without it."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pfdiff
from pfdiff.engine import cache
from pfdiff.engine.cache import ArrayStore, Journal, cache_folder

from ..small.engine import write_engine

needs_users = pytest.mark.skipif(not hasattr(os, "getuid"), reason="no users and modes on this system")


@pytest.mark.parametrize(
    ("xdg", "home", "expected"),
    [("/x", "/h", "/x/pfdiff"), ("", "/h", "/h/.cache/pfdiff"), ("relative", "/h", "/h/.cache/pfdiff")],
)
def test_the_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, xdg: str, home: str, expected: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    monkeypatch.setenv("HOME", home)
    assert cache_folder().as_posix() == expected


# Without a home: a folder in a place that others write to as well.
@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@needs_users
def test_without_a_home_the_folder_is_private(shared: Path) -> None:
    folder = cache_folder()
    assert folder == shared / f"pfdiff-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert cache_folder() == folder


@needs_users
@pytest.mark.parametrize("planted", ["a link", "open to all", "a file", "of another user"])
def test_what_another_user_planted_is_not_used(shared: Path, monkeypatch: pytest.MonkeyPatch, planted: str) -> None:
    target, folder = shared / "target", shared / f"pfdiff-{os.getuid()}"
    target.mkdir()
    if planted == "a link":
        folder.symlink_to(target)
    elif planted == "a file":
        folder.write_text("")
    elif planted == "open to all":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.mkdir(mode=0o700)
        another = os.getuid() + 1
        monkeypatch.setattr(os, "getuid", lambda: another)
        folder.rename(shared / f"pfdiff-{os.getuid()}")
        folder = shared / f"pfdiff-{os.getuid()}"
    with pytest.warns(UserWarning, match="is not private to this user"):
        found = cache_folder()
    assert found.parent == shared
    assert found not in (folder, target)
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    Journal(found / "x.jsonl").put("a", 1)
    assert not list(target.iterdir())


@needs_users
def test_a_line_is_never_appended_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine\n")
    (tmp_path / "journal.jsonl").symlink_to(tmp_path / "target")
    with pytest.warns(UserWarning, match="cannot be written"):
        Journal(tmp_path / "journal.jsonl").put("a", 1)
    assert (tmp_path / "target").read_text() == "mine\n"


@needs_users
def test_a_pipe_in_the_cache_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "journal.jsonl")
    os.mkfifo(tmp_path / "key.npy")
    journal = Journal(tmp_path / "journal.jsonl")
    assert journal.get("a") is None
    with pytest.warns(UserWarning, match="cannot be written"):
        journal.put("a", 1)
    assert journal.get("a") == 1
    assert ArrayStore(tmp_path).get("key", (1,)) is None


# Work goes on.
def test_what_cannot_be_kept_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = ArrayStore(tmp_path / "file" / "x")
    with pytest.warns(UserWarning, match="set XDG_CACHE_HOME"):
        store.put("a", np.zeros(1, np.float32))
    store.put("b", np.zeros(1, np.float32))  # a second warning would be an error
    with pytest.warns(UserWarning, match="set XDG_CACHE_HOME"):
        Journal(tmp_path / "file" / "x.jsonl").put("a", 1)


def test_tune_goes_on_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_engine(tmp_path / "small.engine", nfe=(4,))
    words = {"solvers": ["ddim"], "reference": 20, "calibration": 2, "held_out": 0, "local": False}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    kept = pfdiff.tune(tmp_path / "small.engine", 4, **words)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(cache, "_announced", set())
    with pytest.warns(UserWarning, match="so results are not kept"):
        without = pfdiff.tune(tmp_path / "small.engine", 4, **words)
    assert [one.error for one in without] == [one.error for one in kept]


# The journal.
@pytest.mark.parametrize("torn", [b'["b", 2', b'["b", "\xff', b"\xf0\x9f", b"["])
def test_a_torn_line_takes_no_other_with_it(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).put("a", 1.5)
    with path.open("ab") as file:
        file.write(torn)
    again = Journal(path)
    assert (again.get("a"), again.get("b")) == (1.5, None)
    again.put("c", 3)
    third = Journal(path)
    assert (third.get("a"), third.get("b"), third.get("c")) == (1.5, None, 3)


def test_lines_of_other_kinds_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = ["null", "3", "[1]", '{"a": 1}', "[" * 5000, "\x00", '[["list"], 1]', '["good", 7]']
    path.write_text("\n".join(lines) + "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Journal(path).get("good") == 7


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[:-4],
    "empty": lambda data: b"",
    "shape": lambda data: data.replace(b"(2, 3)", b"(9, 9)"),
    "junk": lambda data: b"x" * 99,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_array_counts_as_missing(tmp_path: Path, damage: str) -> None:
    store, value = ArrayStore(tmp_path), np.arange(6, dtype=np.float32).reshape(2, 3)
    store.put("a", value)
    found = store.get("a", (2, 3))
    assert found is not None
    np.testing.assert_array_equal(found, value)
    path = tmp_path / "a.npy"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert store.get("a", (2, 3)) is None
