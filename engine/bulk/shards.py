"""Shards: samples with their seeds and conditions in one file or folder, the same bytes for the same samples.

    parquet   columns seed, each condition, and sample (float32) or pixels (uint8), arrays as fixed-shape tensors
    npz       the same as arrays
    png       a folder of <seed>.png

A shard appears whole or not at all: it is written beside its place, synced and renamed. The `.part` file is created
when work starts, so leftover files count failed attempts.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from ..artifact import sha256_of
from ..atomic import remove, swap, sync
from ..errors import InputError

PART = ".part"  # ends the hidden file or folder of a shard that is not finished
Encoded = dict[str, bytes]  # the files of a folder by name; a single file's name is empty


@final
@dataclass(frozen=True, eq=False)
class Shard:
    """n samples: seeds uint64 [n], conditions [n, ..], values float32 [n, *shape] or pixels uint8 [n, H, W, C]."""

    seeds: NDArray[np.uint64]
    conditions: Mapping[str, NDArray[Any]]
    values: NDArray[Any]

    @property
    def columns(self) -> dict[str, Any]:
        """Every array by its name in a file."""
        kind = "pixels" if self.values.dtype == np.uint8 else "sample"
        return {"seed": self.seeds, **self.conditions, kind: self.values}


# Formats.
def _parquet(shard: Shard) -> Encoded:
    import pyarrow
    from pyarrow import parquet

    def column(values: NDArray[Any]) -> Any:
        values = np.ascontiguousarray(values)
        return pyarrow.array(values) if values.ndim == 1 else pyarrow.FixedShapeTensorArray.from_numpy_ndarray(values)

    table = pyarrow.table({name: column(values) for name, values in shard.columns.items()})
    sink = io.BytesIO()
    # Every option on which the bytes depend; the file also names its writer's version.
    parquet.write_table(
        table,
        sink,
        version="2.6",
        data_page_version="1.0",
        row_group_size=len(table),
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        write_statistics=False,
    )
    return {"": sink.getvalue()}


def _npz(shard: Shard) -> Encoded:
    sink = io.BytesIO()
    np.savez(sink, **shard.columns)
    return {"": sink.getvalue()}


def _png(shard: Shard) -> Encoded:
    from PIL import Image

    def picture(pixels: NDArray[np.uint8]) -> bytes:
        sink = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(sink, format="PNG")
        return sink.getvalue()

    return {f"{seed:06d}.png": picture(one) for seed, one in zip(shard.seeds.tolist(), shard.values, strict=True)}


@final
@dataclass(frozen=True)
class Format:
    """The encoder of a shard, the end of its name, and the optional library that it needs."""

    encode: Callable[[Shard], Encoded]
    suffix: str
    library: str | None = None


FORMATS = {"parquet": Format(_parquet, ".parquet", "pyarrow"), "npz": Format(_npz, ".npz"), "png": Format(_png, "")}


def check_format(name: str) -> Format:
    """The format of that name, ready for use. Raises InputError when it is unknown or its library is missing."""
    from importlib.util import find_spec

    if name not in FORMATS:
        raise InputError(f"format '{name}', expected one of {', '.join(FORMATS)}")
    library = FORMATS[name].library
    if library is not None and find_spec(library) is None:
        raise InputError(f"format {name} needs {library}: pip install 'pfdiff[{name}]', or choose format npz")
    return FORMATS[name]


# Files.
@contextmanager
def attempt(target: Path) -> Iterator[Path]:
    """An empty part of `target`, removed at the end. If the process dies, it stays and `tries` counts it.

    Raises OSError.
    """
    part = target.with_name(f".{target.name}-{secrets.token_hex(4)}{PART}")
    part.touch()
    try:
        yield part
    finally:
        remove(part)


@contextmanager
def placing(target: Path) -> Iterator[Path]:
    """An attempt for `write_shard`, which takes the place of `target` when the block ends well. Raises OSError."""
    with attempt(target) as part:
        yield part
        if target.is_dir():
            swap(part, target)
        else:
            os.replace(part, target)
        sync(target.parent)


def tries(target: Path) -> int:
    """The number of parts of this shard: those in progress, and those that dead workers left."""
    return len(list(target.parent.glob(f".{target.name}-*{PART}")))


def write_shard(part: Path, shard: Shard, format: str) -> tuple[str, int]:
    """Write a shard at `part`; (SHA-256, bytes) as `digest_of` gives them. Raises OSError."""
    files = FORMATS[format].encode(shard)
    if "" in files:
        _write(part, files[""])
    else:
        part.unlink()
        part.mkdir()
        for name, content in files.items():
            _write(part / name, content)
        sync(part)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return _combined(hashes), sum(map(len, files.values()))


def digest_of(target: Path) -> tuple[str, int]:
    """(SHA-256, bytes) of a shard. That of a folder is the hash of its files' names and hashes. Raises OSError."""
    if target.is_dir():
        paths = sorted(target.iterdir())
        return _combined({path.name: sha256_of(path) for path in paths}), sum(path.stat().st_size for path in paths)
    return sha256_of(target), target.stat().st_size


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _combined(hashes: Mapping[str, str]) -> str:
    if "" in hashes:
        return hashes[""]
    return hashlib.sha256("".join(f"{hashes[name]} {name}\n" for name in sorted(hashes)).encode()).hexdigest()
