"""What `tune --metric fd` makes small: the Frechet distance of a program's samples to real pictures.

A tally is the samples' features, so a candidate that goes on to more seeds is not run again on the first ones. Features
stand in the cache folder by what they depend on: network, program, seeds and conditions, extractor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from ...engine.cache import ArrayStore, cache_folder, content_key
from ...engine.compiler.program import Program
from ...engine.contract.seed_conditions import conditions_of
from ...engine.errors import InputError
from ...engine.runtime.noise import noise
from ..distances.features import Extractor, Features
from ..distances.real_pictures import VERSION, RealPictures
from ..pictures.pixels import pixels_of
from ..sampling.budget import Budget
from ..sampling.pool import Floats, Pool, Rows
from ..sampling.subject import LATENTS, BlackBox, Subject

Asked = Sequence[tuple[Program, Rows]]


@final
@dataclass(frozen=True, eq=False)
class FeatureSampler:
    """Features float32 [m, width] of the samples that a program makes of some rows of the seeds.

    data_range: of samples; its ends become 0 and 255.
    """

    pool: Pool
    network: Extractor
    data_range: tuple[float, float]

    @staticmethod
    @contextmanager
    def opened(
        subject: Subject,
        seeds: Sequence[int],
        given: Mapping[str, Any] | None,
        network: Extractor,
        backend: str,
        threads: int | None,
    ) -> Iterator[FeatureSampler]:
        """With the subject's network, closed at the end. Raises InputError, BackendError."""
        contract = subject.contract
        with subject.opened(backend, threads) as running:
            box = BlackBox(running, contract, conditions_of(contract, given, seeds))
            yield FeatureSampler(Pool(box, noise(seeds, contract.shape).numpy(), seeds), network, contract.data_range)

    def __call__(self, program: Program, rows: Rows, before: Callable[[int], None] | None = None) -> Floats:
        samples = self.pool.sample(program, rows, before).reshape(-1, *self.pool.shape)
        return self.network(pixels_of(samples, self.data_range)).pooled


@final
@dataclass(frozen=True, eq=False)
class DistanceCriterion:
    """A `Criterion` of the search. keys [n]: names of what each sample depends on but the program.

    ahead: None, or what begins to compute features of several and gives for each a function that waits for them.
    """

    sampler: FeatureSampler
    real: RealPictures
    budget: Budget
    store: ArrayStore
    keys: Sequence[str]
    ahead: Callable[[Asked], list[Callable[[], Floats]]] | None = None
    _begun: dict[str, Callable[[], Floats]] = field(default_factory=dict, init=False)
    _seen: set[bytes] = field(default_factory=set, init=False)

    def expect(self, asked: Asked) -> None:
        """Begin what is not in the cache."""
        if self.ahead:
            missing = [one for one in asked if self._held(*one) is None]
            self._begun.clear()
            self._begun.update(zip((self._key(*one) for one in missing), self.ahead(missing), strict=True))

    def tally(self, program: Program, rows: Rows) -> Features:
        """The features of the samples `rows`."""
        held = self._held(program, rows)
        self.budget.charge(self.sampler.pool.cost(program, rows, self._seen), cached=held is not None)
        if held is None:
            key = self._key(program, rows)
            begun = self._begun.pop(key, None)
            held = begun() if begun else self.sampler(program, rows, self.budget.passes)
            self.store.put(key, held)
        return Features(held, None)

    def error(self, tally: Features, seeds: int) -> float:
        """The distance of all that was tallied."""
        return self.real.distance(tally.pooled)

    def _key(self, program: Program, rows: Rows) -> str:
        return content_key(program.digest, [self.keys[row] for row in rows], self.real.extractor.digest, VERSION)

    def _held(self, program: Program, rows: Rows) -> Floats | None:
        return self.store.get(self._key(program, rows), (len(rows), self.real.width))


def check_pictures(subject: Subject) -> None:
    """Raises InputError when samples are no pictures."""
    shape = subject.contract.shape
    if subject.sample_range == LATENTS or len(shape) != 3:
        kind = "latents" if subject.sample_range == LATENTS else f"of shape {list(shape)}"
        raise InputError(f"metric fd needs samples that are pictures [C, H, W], these are {kind}; use metric error")


def make_distance_criterion(
    subject: Subject,
    sampler: FeatureSampler,
    seeds: Sequence[int],
    given: Mapping[str, Any] | None,
    real: RealPictures,
    budget: Budget,
    ahead: Callable[[Asked], list[Callable[[], Floats]]] | None = None,
) -> DistanceCriterion:
    """The criterion on `seeds`."""
    conditions = conditions_of(subject.contract, given, seeds)
    keys = [
        content_key(subject.digest, seed, *(np.asarray(values[row]) for values in conditions))
        for row, seed in enumerate(seeds)
    ]
    return DistanceCriterion(sampler, real, budget, ArrayStore(cache_folder() / "search"), keys, ahead)
