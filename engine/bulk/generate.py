"""An engine in bulk: many samples as shards in a folder, in this process or on a Ray cluster, with the same bytes.

pfdiff.generate("fashion.engine", 50_000, "samples", nfe=8)                 # in this process
pfdiff.generate("fashion.engine", 50_000, "samples", nfe=8, ray="local")    # a worker for each core, or each GPU

After a kill the same call goes on: it verifies the shards that the manifest lists, and makes the others.

`recipe` says what the samples are, `shards` how they are stored, `manifest` which are finished. `worker` makes a shard;
`on_ray` has many workers do so on the cluster that `cluster` connects to.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from ..api import Engine
from ..artifact import read_artifact
from ..contract.seed_conditions import condition_tables
from ..errors import InputError
from ..progress import Counts
from .manifest import Manifest, ShardRecord, open_manifest
from .recipe import Recipe, make_recipe, seed_range
from .shards import Shard, check_format
from .worker import Worker, Workplace, draw


@final
@dataclass(frozen=True)
class Generated:
    """What a run did: `count` samples in `shards` shards at `path`, `made` of them now, in `seconds`.

    `made_by`: what the samples were computed with; several entries agree to rounding only.
    """

    path: Path
    count: int
    nfe: int
    shards: int
    made: int
    seconds: float
    made_by: tuple[str, ...]


def generate(
    engine: str | os.PathLike[str],
    count: int,
    out: str | os.PathLike[str],
    *,
    nfe: int | None = None,
    first: int = 0,
    conditions: Mapping[str, Any] | None = None,
    format: str = "parquet",
    pixels: bool = False,
    shard: int | None = None,
    ray: str | None = None,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    device: str = "auto",
    backend: str = "auto",
    threads: int | None = None,
    progress: Counts | None = None,
) -> Generated:
    """Samples of the seeds first .. first + count - 1 as shards in the folder `out`, with a manifest.

    If a run is interrupted, repeat the call: it verifies the finished shards and makes the missing ones. The files do
    not depend on `ray`, `workers` and `threads`.

    nfe: may be left out when the engine has one program. conditions: by name, one value or m values; the sample of
    seed s has value number s mod m. Without it, named labels are taken in turn. format: parquet, npz or png. pixels:
    uint8 [H, W, C] in place of float32 samples; png always has them. shard: samples a file, by default about 256.
    ray: None for this process, "local" for a cluster of this machine, "auto" for the running cluster, or HOST:PORT.
    workers: one engine each, by default as many as fit on the cluster. gpus_per_worker: by default 1 where the cluster
    has GPUs. threads: of each engine; by default the backend's choice here, and 1 on Ray. progress: called with
    (finished samples, all samples).
    Raises InputError, EngineFileError, BackendError; finished shards are kept.
    """
    artifact = read_artifact(engine)
    check_format(format)
    pixels = pixels or format == "png"
    recipe = make_recipe(
        artifact, count, nfe, first=first, size=shard, format=format, pixels=pixels, conditions=conditions
    )
    place = Workplace(Path(engine).resolve(), Path(out).resolve(), device, backend, threads)
    if ray is None and (workers is not None or gpus_per_worker is not None):
        raise InputError("workers and gpus_per_worker are for Ray; give ray='local' for a cluster of this machine")
    start = time.perf_counter()
    with open_manifest(Path(out), recipe) as manifest:
        missing = manifest.missing
        if missing:
            with closing(_records(recipe, place, missing, ray, workers, gpus_per_worker)) as records:
                _collect(manifest, records, progress)
    return Generated(
        path=Path(out),
        count=count,
        nfe=recipe.nfe,
        shards=recipe.shards,
        made=len(missing),
        seconds=time.perf_counter() - start,
        made_by=tuple(sorted({record.made_by for record in manifest.finished.values()})),
    )


def _records(
    recipe: Recipe,
    place: Workplace,
    shards: Sequence[int],
    ray: str | None,
    workers: int | None,
    gpus_per_worker: float | None,
) -> Generator[tuple[int, ShardRecord], None, None]:
    """(index, record) of each shard as it is made, here or on a cluster."""
    if ray is not None:
        from .on_ray import run_on_ray

        yield from run_on_ray(ray, recipe, place, shards, workers=workers, gpus_per_worker=gpus_per_worker)
        return
    with Worker(recipe, place) as worker:
        for index in shards:
            yield index, worker.make(index)


def _collect(manifest: Manifest, records: Iterator[tuple[int, ShardRecord]], progress: Counts | None) -> None:
    """Note each shard as it is finished."""
    done = sum(record.count for record in manifest.finished.values())
    if progress:
        progress(done, manifest.recipe.count)
    for index, record in records:
        manifest.add(index, record)
        done += record.count
        if progress:
            progress(done, manifest.recipe.count)


def batches(
    engine: Engine,
    count: int,
    nfe: int,
    *,
    first: int = 0,
    conditions: Mapping[str, Any] | None = None,
    size: int = 256,
    pixels: bool = False,
) -> Iterator[Shard]:
    """The samples that `generate` would write, in memory: `size` at a time in order of their seeds.

    Each has .seeds uint64 [n], .conditions by name, .values float32 [n, *shape] or with `pixels` uint8 [n, H, W, C].
    """
    tables = condition_tables(engine.contract, conditions)
    for start in range(0, count, size):
        yield draw(engine, seed_range(first + start, min(size, count - start)), nfe, tables, pixels=pixels)
