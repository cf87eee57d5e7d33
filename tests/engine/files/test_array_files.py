"""Arrays from files of every format, and files that are damaged, endless or too large: one line, at once."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from pfdiff import InputError
from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.engine.files.array_files import read_array, read_text

VALUES = np.random.default_rng(0).standard_normal((3, 4, 5))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int32", "uint8", "bool"])
def test_every_format_gives_the_same_array(tmp_path: Path, dtype: str) -> None:
    values = (VALUES * 3).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(values))
    np.savez(tmp_path / "b.npz", values)
    np.savez_compressed(tmp_path / "c.npz", other=VALUES, text=values)
    save_file({"text": values, "other": VALUES}, tmp_path / "d.safetensors")
    for name in ("a.npy", "fortran.npy", "b.npz", "c.npz", "d.safetensors"):
        found = read_array(tmp_path / name, ("prompt", "text"))
        assert found.dtype == values.dtype
        assert found.flags.writeable
        np.testing.assert_array_equal(found, values)


def test_bfloat16_is_float32(tmp_path: Path) -> None:
    values = torch.from_numpy(VALUES).to(torch.bfloat16)
    save_torch({"text": values}, tmp_path / "a.safetensors")
    found = read_array(tmp_path / "a.safetensors")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values.float().numpy())


def test_several_arrays_are_listed(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", one=VALUES, two=VALUES)
    with pytest.raises(InputError, match="holds one, two; expected prompt or text"):
        read_array(tmp_path / "a.npz", ("prompt", "text"))


def header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    text = str({"descr": descr, "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def safetensors(name: str, **fields: object) -> bytes:
    text = json.dumps({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **fields}}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


DAMAGED = {
    "empty.npy": b"",
    "text.npy": b"no array",
    "long.npy": header((1 << 40,)) + bytes(16),
    "endless.npy": header((1 << 62, 1 << 62)) + bytes(16),
    "negative.npy": header((-1,)) + bytes(16),
    "object.npy": header((2,), "|O") + bytes(16),
    "words.npy": header((2,), "<U4") + bytes(32),
    "text.npz": b"no archive",
    "empty.safetensors": b"",
    "long.safetensors": struct.pack("<Q", 1 << 62) + b"{}",
    "list.safetensors": struct.pack("<Q", 2) + b"[]" + bytes(8),
    "deep.safetensors": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "short.safetensors": safetensors("x", shape=[1 << 40]),
    "backwards.safetensors": safetensors("x", data_offsets=[8, 0]),
    "beyond.safetensors": safetensors("x", data_offsets=[0, 1 << 50], shape=[1 << 48]),
    "kind.safetensors": safetensors("x", dtype="F8_E4M3"),
    "null.safetensors": safetensors("x", shape=None),
    "other.pt": b"weights",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(DAMAGED[name])
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=name) as caught:
            read_array(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 300


def test_an_archive_that_unpacks_to_a_thousand_times_its_size_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        file.write(header((96 << 20,)))
        for _ in range(384):
            file.write(bytes(1 << 20))
    assert (tmp_path / "x.npz").stat().st_size < 1 << 20
    with pytest.raises(InputError, match="unpacks to 384 MiB"):
        read_array(tmp_path / "x.npz")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    """A pipe without a writer would wait for ever, /dev/zero would never end."""
    for ending in ("npy", "npz", "safetensors", "txt", "json"):
        path = tmp_path / f"x.{ending}"
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero")
        if ending in ("txt", "json"):
            with pytest.raises(InputError, match="is no regular file"):
                read_text(path)
        else:
            with pytest.raises(InputError, match="is no regular file"):
                read_array(path)
        if ending in ("npy", "txt", "json"):
            with pytest.raises(InputError, match="is no regular file"):
                parse_schedule(f"alphas:{path}")


def test_a_damaged_schedule_is_one_line(tmp_path: Path) -> None:
    for name in ("empty.npy", "long.npy", "object.npy"):
        (tmp_path / name).write_bytes(DAMAGED[name])
        with pytest.raises(InputError, match=name):
            parse_schedule(f"alphas:{tmp_path / name}")
