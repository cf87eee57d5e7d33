"""The .npz of an answer against numpy's own: the same entries byte for byte, whole for zipfile, readable for numpy."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from numpy.typing import NDArray

from pfdiff.serving.orders import NotDrawnError
from pfdiff.serving.routes.npz import npz_bytes
from pfdiff.serving.routes.parsing import read_npz

RNG = np.random.default_rng(3)
ARRAYS = {
    "samples": RNG.standard_normal((2, 3, 5, 7)).astype(np.float32),
    "seeds": np.array([0, 2**64 - 1], np.uint64),
    "label": np.array([3, 4]),
    "turned": np.asfortranarray(RNG.standard_normal((4, 6))),
    "every_other": np.arange(10, dtype=np.int16)[::2],
    "flag": np.array([True, False]),
    "none": np.zeros((0, 3), np.float16),
    "scalar": np.array(2.5),
    "größe": np.arange(3, dtype=np.uint8),
}


def entries(raw: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        assert archive.testzip() is None  # checksums
        return {name: archive.read(name) for name in archive.namelist()}


def by_numpy(arrays: dict[str, NDArray[np.generic]]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def test_entries_are_those_of_savez() -> None:
    contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in ARRAYS.items()}
    assert entries(npz_bytes(ARRAYS)) == entries(by_numpy(contiguous))
    assert entries(npz_bytes({})) == {}


@pytest.mark.parametrize("name", ARRAYS)
def test_numpy_reads_what_was_written(name: str) -> None:
    with np.load(io.BytesIO(npz_bytes(ARRAYS)), allow_pickle=False) as held:
        assert held.files == [*ARRAYS]
        assert held[name].dtype == ARRAYS[name].dtype
        assert np.array_equal(held[name], ARRAYS[name])


def test_an_archive_ends_where_it_says() -> None:
    """Whatever is cut off is noticed."""
    raw = npz_bytes(ARRAYS)
    with pytest.raises(zipfile.BadZipFile):
        entries(raw[:-1])
    assert entries(raw)["seeds.npy"].endswith(ARRAYS["seeds"].tobytes())


@pytest.mark.parametrize("packed", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_is_packed_in_another_way_is_refused(packed: int) -> None:
    """Their decoders raise errors of their own on damaged bytes."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", packed) as archive:
        archive.writestr("seeds.npy", bytes(100))
    with pytest.raises(NotDrawnError, match="packed in another way"):
        read_npz(body.getvalue(), 1000)
