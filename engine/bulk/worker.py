"""One engine that makes shards: `generate` runs one in its own process, and Ray one on every worker."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from ..api import Engine
from ..artifact import read_artifact
from ..contract.seed_conditions import rows
from ..errors import BackendError, InputError
from .manifest import ShardRecord, check_recipe, shard_name, writing_to
from .recipe import Recipe, engine_digest
from .shards import Shard, placing, tries, write_shard

MOST_TRIES = 5  # a shard that has cost this many workers ends the run


@final
@dataclass(frozen=True)
class Workplace:
    """The paths of the engine and the folder on a worker, and the device and backend that it uses."""

    engine: Path
    out: Path
    device: str = "auto"
    backend: str = "auto"
    threads: int | None = None


@final
class Worker(AbstractContextManager["Worker"]):
    """One engine that makes shards of a recipe, one at a time; close it, or use it in a `with` block.

    Raises InputError when the engine or the folder is not that of the recipe, as on a machine that does not share them.
    """

    def __init__(self, recipe: Recipe, place: Workplace) -> None:
        check_recipe(place.out, recipe)
        artifact = read_artifact(place.engine)
        program = artifact.programs.get(recipe.nfe)
        if program is None or (engine_digest(artifact), program.digest) != (recipe.engine, recipe.program):
            raise InputError(f"engine '{place.engine}' was changed during the run; finished shards are kept")
        self._recipe = recipe
        self._out = place.out
        self._engine = Engine.open(artifact, device=place.device, backend=place.backend, threads=place.threads)

    def make(self, index: int) -> ShardRecord:
        """Draw and write the shard of that index. Raises InputError (disk), BackendError (network)."""
        recipe = self._recipe
        seeds = recipe.seeds(index)
        name = shard_name(recipe, index)
        check_tries(self._out / name)
        with writing_to(self._out), placing(self._out / name) as part:
            shard = draw(self._engine, seeds, recipe.nfe, recipe.conditions, pixels=recipe.pixels)
            sha256, size = write_shard(part, shard, recipe.format)
        decoded = f"; {self._engine.decoding}" if recipe.pixels and self._engine.decoding else ""
        return ShardRecord(name, int(seeds[0]), len(seeds), size, sha256, self._engine.description + decoded)

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()

    def __exit__(self, *exception: object) -> None:
        self.close()


def check_tries(target: Path) -> None:
    """Raises BackendError when a shard has cost MOST_TRIES workers: another worker would die too."""
    if tries(target) >= MOST_TRIES:
        raise BackendError(f"shard '{target.name}' has cost {MOST_TRIES} workers; see what ends them: memory, a driver")


def draw(
    engine: Engine, seeds: NDArray[np.uint64], nfe: int, tables: Mapping[str, NDArray[Any]], *, pixels: bool = False
) -> Shard:
    """The samples of `seeds` on the host, each with its rows of the condition `tables`.

    Raises BackendError when a float32 sample is not finite.
    """
    given = rows(tables, seeds)
    values = (engine.images if pixels else engine.sample)(seeds=seeds, nfe=nfe, **given)
    if not pixels and not bool(torch.isfinite(values).all()):
        raise BackendError(f"samples of seeds {seeds[0]} to {seeds[-1]} are not finite; try precision fp32")
    return Shard(seeds, given, values.cpu().numpy())
