"""The cache folder: what stands there is believed only if it is whole, and nothing there stops a run."""

from __future__ import annotations

import json
import math
import os
import stat
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfdiff.engine import atomic, cache
from pfdiff.engine.cache import ArrayStore, Journal, cache_folder, make_private
from pfdiff.engine.errors import InputError

VALUE = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


# Arrays.
def test_an_array_is_read_back(tmp_path: Path) -> None:
    store = ArrayStore(tmp_path / "a")
    store.put("key", VALUE)
    found = store.get("key", (3, 4))
    assert found is not None
    np.testing.assert_array_equal(found, VALUE)
    np.testing.assert_array_equal(np.load(tmp_path / "a" / "key.npy"), VALUE)  # a .npy file for others
    assert store.get("other", (3, 4)) is None
    assert store.get("key", (4, 3)) is None


@pytest.mark.parametrize("position", range(0, 128 + 48 + 32, 7))
def test_every_flipped_bit_is_noticed(tmp_path: Path, position: int) -> None:
    store = ArrayStore(tmp_path)
    store.put("key", VALUE)
    data = bytearray((tmp_path / "key.npy").read_bytes())
    data[position] ^= 16
    (tmp_path / "key.npy").write_bytes(data)
    assert store.get("key", (3, 4)) is None


def test_arrays_that_are_none(tmp_path: Path) -> None:
    store = ArrayStore(tmp_path)
    for key, value in (("nan", np.full(3, np.nan, np.float32)), ("double", np.zeros(3))):
        store.put(key, value)  # type: ignore[arg-type]
        assert store.get(key, (3,)) is None
    np.save(tmp_path / "bare.npy", VALUE)  # without its SHA-256
    (tmp_path / "empty.npy").touch()
    (tmp_path / "zero.npy").symlink_to("/dev/zero")
    (tmp_path / "folder.npy").mkdir()
    with open(tmp_path / "sparse.npy", "wb") as file:
        file.truncate(1 << 40)
    os.mkfifo(tmp_path / "pipe.npy")
    before = time.monotonic()
    for key in ("bare", "empty", "zero", "folder", "sparse", "pipe"):
        assert store.get(key, (3, 4)) is None
    assert time.monotonic() - before < 5


# Journals.
def test_a_torn_line_loses_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).put("a", 1.5)
    with path.open("a") as file:
        file.write('["b", 2')
    Journal(path).put("c", 3)
    again = Journal(path)
    assert (again.get("a"), again.get("b"), again.get("c")) == (1.5, None, 3)


def test_lines_that_are_none_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = ["1", "[]", '[["list"], 1]', '{"a": 1}', "[" * 100_000, "\x00", '["a", ' + "9" * 5000 + "]", '["good", 1]']
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    assert Journal(path).get("good") == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.5, 1.5),
        (2, 2.0),
        (math.inf, math.inf),
        (math.nan, None),
        (True, None),
        ("1", None),
        ([1], None),
        (10**400, None),
    ],
)
def test_numbers_of_a_journal(tmp_path: Path, value: Any, expected: float | None) -> None:
    Journal(tmp_path / "j").put("key", value)
    assert Journal(tmp_path / "j").number("key") == expected


def test_journals_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        journal = Journal(tmp_path / name)
        assert journal.get("a") is None
        with pytest.raises(InputError, match="cannot be written"):
            journal.put("a", 1)


def test_two_processes_append_whole_lines(tmp_path: Path) -> None:
    journals = [Journal(tmp_path / "j") for _ in range(4)]

    def write(number: int) -> None:
        for count in range(100):
            journals[number].put(f"{number} {count}", "x" * 200)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    lines = (tmp_path / "j").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 400


def test_a_read_only_cache_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    journal, store = Journal(tmp_path / "file" / "j"), ArrayStore(tmp_path / "file" / "arrays")
    with pytest.warns(RuntimeWarning, match="cannot be written .*; set XDG_CACHE_HOME .*; nothing is kept meanwhile"):
        journal.keep("a", 1)
    assert journal.get("a") == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        journal.keep("b", 2)  # said once
    with pytest.warns(RuntimeWarning, match="nothing is kept meanwhile"):
        store.keep("a", VALUE)


# The folder where every user may create some.
@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return cache_folder()


def test_without_a_home_the_folder_is_its_owners_alone(shared: Path) -> None:
    Journal(shared / "j").put("a", 1)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o700
    assert Journal(shared / "j").get("a") == 1


@pytest.mark.parametrize("planted", ["a link", "a link to nothing", "open to others", "another's"])
def test_a_planted_folder_is_neither_read_nor_written(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o700)
    (victim / "j").write_text('["a", 1]\n')
    if planted.startswith("a link"):
        shared.symlink_to(victim if planted == "a link" else tmp_path / "nothing")
    else:
        shared.mkdir(mode=0o777 if planted == "open to others" else 0o700)
        shared.chmod(0o777 if planted == "open to others" else 0o700)
        (shared / "j").write_text('["a", 1]\n')
    if planted == "another's":
        monkeypatch.setattr(cache.os, "getuid", lambda: os.geteuid() + 1)
        shared.rename(cache_folder())
    journal = Journal(cache_folder() / "j")
    assert journal.get("a") is None
    with pytest.raises(InputError, match=r"cannot be written|is a link, or open to other users; remove it, or set XDG"):
        journal.put("b", 2)
    assert (victim / "j").read_text() == '["a", 1]\n'
    with pytest.raises((InputError, OSError)):
        make_private(cache_folder())


# Waiting.
def test_a_lock_that_is_never_given_back_ends_the_wait(tmp_path: Path) -> None:
    said: list[str] = []
    with atomic.locked(tmp_path):
        before = time.monotonic()
        with pytest.raises(BlockingIOError), atomic.locked(tmp_path, 0.2, said.append):
            pass
        assert 0.2 <= time.monotonic() - before < 5
    assert said == [f"waiting for another process that holds the lock on {tmp_path}, at most 0 s"]
    with atomic.locked(tmp_path):
        pass
