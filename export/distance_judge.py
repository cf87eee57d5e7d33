"""What `tune --metric fd` makes small: the Frechet distance of a program's samples to real pictures.

A tally is the samples' features, so a candidate that goes on to more seeds is not run again on the first ones. Features
stand in the cache folder by what they depend on: network, program, seeds and conditions, extractor.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from ..engine.backends.abstract import Backend
from ..engine.cache import ArrayStore, cache_folder, content_key
from ..engine.errors import InputError
from ..engine.noise import noise
from ..engine.pool import Budget, Floats, Pool, Rows
from ..engine.program import Program
from ..kernels import eager
from .black_box import LATENTS, BlackBox, Subject, conditions_of
from .distances import FrechetDistance
from .evaluate import VERSION, pictures_of, reference_features
from .features import INCEPTION, Extractor, Features, extractor

if TYPE_CHECKING:
    from torch import nn


@final
@dataclass(frozen=True, eq=False)
class RealPictures:
    """What samples are measured against: `width` features of each picture."""

    name: str
    extractor: Extractor
    distance: FrechetDistance
    width: int

    @staticmethod
    def of(pictures: str | os.PathLike[str] | NDArray[Any], features: str | nn.Module) -> RealPictures:
        """From files or an array, and what `extractor` takes. Raises InputError, BackendError."""
        network = extractor(features)
        pixels, name = pictures_of(pictures)
        real, _ = reference_features(network, pixels)
        return RealPictures(name, network, FrechetDistance(real.pooled), real.pooled.shape[1])

    def __str__(self) -> str:
        kind = "FID" if self.extractor.name == INCEPTION else "FD"
        return f"{kind} to {self.name} on features {self.extractor.name}"


@final
class DistanceJudge:
    """A `Criterion` of the search, on a pool of seeds; keys [n] name what each sample depends on but the program."""

    def __init__(
        self,
        pool: Pool,
        real: RealPictures,
        data_range: tuple[float, float],
        budget: Budget,
        store: ArrayStore,
        keys: Sequence[str],
    ) -> None:
        self.budget = budget
        self._pool = pool
        self._real = real
        self._range = data_range
        self._store = store
        self._keys = keys
        self._seen: set[tuple[float, float, bytes]] = set()

    def tally(self, program: Program, rows: Rows) -> Features:
        """The features of the samples `rows`."""
        network = self._real.extractor
        key = content_key(program.digest, [self._keys[row] for row in rows], network.digest, VERSION)
        held = self._store.get(key, (len(rows), self._real.width))
        self.budget.charge(self._pool.cost(program, rows, self._seen), cached=held is not None)
        if held is None:
            held = network(self._pixels(self._pool.sample(program, rows))).pooled
            self._store.put(key, held)
        return Features(held, None)

    def error(self, tally: Features, seeds: int) -> float:
        """The distance of all that was tallied."""
        return self._real.distance(tally.pooled)

    def _pixels(self, samples: Floats) -> NDArray[np.uint8]:
        """As `engine.images` makes them; what is not a number becomes black."""
        x = torch.from_numpy(samples).view(-1, *self._pool.shape)
        pixels = torch.empty((len(x), *x.shape[2:], x.shape[1]), dtype=torch.uint8)
        eager.images(pixels, x, *self._range)
        return pixels.numpy()


def make_distance_judge(
    subject: Subject,
    backend: Backend,
    seeds: Sequence[int],
    given: Mapping[str, Any] | None,
    real: RealPictures,
    budget: Budget,
) -> DistanceJudge:
    """The judge on `seeds`. Raises InputError when samples are no pictures."""
    contract = subject.contract
    if subject.sample_range == LATENTS or len(contract.shape) != 3:
        kind = "latents" if subject.sample_range == LATENTS else f"of shape {list(contract.shape)}"
        raise InputError(f"metric fd needs samples that are pictures [C, H, W], these are {kind}; use metric error")
    conditions = conditions_of(contract, given, seeds)
    pool = Pool(BlackBox(backend, contract, conditions), noise(seeds, contract.shape).numpy())
    keys = [
        content_key(subject.digest, seed, *(np.asarray(values[row]) for values in conditions))
        for row, seed in enumerate(seeds)
    ]
    return DistanceJudge(pool, real, contract.data_range, budget, ArrayStore(cache_folder() / "search"), keys)
