"""Cached arrays and numbers are believed only if they are whole; locks are not waited for without end."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfdiff.engine import atomic
from pfdiff.engine.cache import ArrayStore, Journal

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
    # A line that is being written looks cut short and is ended once more: an empty line, which a reader skips.
    assert len([json.loads(line) for line in lines if line]) == 400
    assert len(Journal(tmp_path / "j")._values) == 400


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
