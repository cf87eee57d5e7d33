"""The recipe of a bulk run: everything that the bytes of its samples depend on, and the cut into shards.

A run of `count` samples has the seeds first, first + 1, ..., one sample each. Shard i holds `size` seeds from
first + i * size on. Conditions are tables [m, *shape], and the sample of seed s has row s mod m. So a sample depends on
its seed and the recipe, never on the worker, the time or the other samples.

A shard is always drawn by the same calls: batches of the engine's largest bucket from its first seed on. So its bytes
depend only on the engine, the backend's version and the kind of processor. The threads of onnxruntime split the rows
and columns of a product, not its sums, and change nothing; other backends promise less.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from ..artifact import Artifact
from ..contract.seed_conditions import condition_tables
from ..errors import InputError, shown

SEEDS = 1 << 64
SHARD_SAMPLES = 256
SHARD_BYTES = 64 << 20  # of samples; a default shard has at most this and SHARD_SAMPLES, in whole buckets
PIXEL_CHANNELS = (1, 3, 4)
LISTED_ROWS = 32  # the manifest holds a longer table as its hash


@final
@dataclass(frozen=True, eq=False)
class Recipe:
    """A run's samples. `engine`, `program`: SHA-256; `batch`: the engine's buckets; `size`: samples of a shard.

    `solver` is a label; the program's coefficients decide.
    """

    network: str
    solver: str
    engine: str
    program: str
    nfe: int
    batch: tuple[int, ...]
    first: int
    count: int
    size: int
    format: str
    pixels: bool
    conditions: Mapping[str, NDArray[Any]]

    @property
    def shards(self) -> int:
        return -(-self.count // self.size)

    def seeds(self, shard: int) -> NDArray[np.uint64]:
        """The seeds of a shard, uint64 [n]; the last shard may be shorter."""
        start = shard * self.size
        return seed_range(self.first + start, min(self.size, self.count - start))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data: two runs are the same when these are equal."""
        return {
            "network": self.network,
            "engine": self.engine,
            "nfe": self.nfe,
            "program": self.program,
            "batch": list(self.batch),
            "first": self.first,
            "count": self.count,
            "shard": self.size,
            "format": self.format,
            "values": "uint8 [height, width, channel]" if self.pixels else "float32, the network's shape",
            "conditions": {name: _described(table) for name, table in self.conditions.items()},
        }


def make_recipe(
    artifact: Artifact,
    count: int,
    nfe: int | None,
    *,
    first: int = 0,
    size: int | None = None,
    format: str = "parquet",
    pixels: bool = False,
    conditions: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe of a run of an engine. `nfe` may be None when the engine has one program.

    Raises InputError on an unknown NFE or condition, a count or seed out of range, and pixels of what is no image.
    """
    contract = artifact.contract
    program = artifact.program(nfe)
    for name, value, low in (("count", count, 1), ("first", first, 0), ("shard", size, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
            raise InputError(f"{name}={shown(value)}, expected an integer of at least {low}")
    if first + count > SEEDS:
        raise InputError(f"seeds {first} to {first + count - 1}: the largest is {SEEDS - 1}; start or count lower")
    shape = artifact.decoder.image if artifact.decoder and pixels else contract.shape
    if pixels and (len(shape) != 3 or shape[0] not in PIXEL_CHANNELS):
        raise InputError(f"samples of shape {list(shape)} are no images [1|3|4, H, W]; generate float32 samples")
    return Recipe(
        network=contract.name,
        solver=program.solver,
        engine=engine_digest(artifact),
        program=program.digest,
        nfe=program.nfe,
        batch=artifact.batch,
        first=first,
        count=count,
        size=size or _default_size(math.prod(shape) * (1 if pixels else 4), max(artifact.batch)),
        format=format,
        pixels=pixels,
        conditions=condition_tables(contract, conditions),
    )


def engine_digest(artifact: Artifact) -> str:
    """SHA-256 of everything but the program that samples depend on: contracts, buckets, precision, hashes of files."""
    plain = {
        "contract": artifact.contract.to_dict(),
        "decoder": artifact.decoder.to_dict() if artifact.decoder else None,
        "batch": list(artifact.batch),
        "precision": artifact.precision,
        "files": {name: one.sha256 for name, one in artifact.files.items()},
    }
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def seed_range(first: int, count: int) -> NDArray[np.uint64]:
    """The seeds first, first + 1, ... as uint64 [count]."""
    return np.uint64(first) + np.arange(count, dtype=np.uint64)


def _described(table: NDArray[Any]) -> dict[str, Any]:
    what = {"row": f"seed mod {len(table)}", "dtype": str(table.dtype), "shape": list(table.shape)}
    if table.size <= LISTED_ROWS:
        return {**what, "values": table.tolist()}
    return {**what, "sha256": hashlib.sha256(table.tobytes()).hexdigest()}


def _default_size(sample_bytes: int, bucket: int) -> int:
    samples = min(SHARD_SAMPLES, SHARD_BYTES // sample_bytes)
    return max(1, samples // bucket) * bucket
