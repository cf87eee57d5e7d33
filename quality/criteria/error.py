"""The error of a sampler: its distance to the same network's many-step samples of the same seeds.

    error = RMS over seeds and elements of clip(sample) - clip(reference), clipped to the range of the data

`tune` makes it small, `compare` reports it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from ...engine.backends.abstract import Backend
from ...engine.cache import ArrayStore, Journal, cache_folder, content_key
from ...engine.compiler.program import Program
from ...engine.contract.seed_conditions import conditions_of
from ...engine.progress import Stages
from ...engine.runtime.noise import noise
from ..sampling.budget import Budget
from ..sampling.pool import Floats, Pool, Rows
from ..sampling.reference import FEW, Reference, Trajectory, targets, trajectory
from ..sampling.subject import BlackBox, Subject
from ..search.candidates import Setting

CHECKED = 2  # seeds on which the error of a short reference is found
ENOUGH = 0.1  # of the default sampler's error
MOST_OF_BUDGET = 0.4  # that an exacter reference may take; else the first is kept, and its error told


@final
class ErrorCriterion:
    """The RMS error of programs on a pool with known targets [n, elements]; counted, and kept in a journal.

    keys [n]: names of what each target depends on, so that a journal serves several pools.
    """

    def __init__(
        self,
        pool: Pool,
        targets: Floats,
        data_range: tuple[float, float],
        budget: Budget,
        journal: Journal | None = None,
        keys: Sequence[str] | None = None,
    ) -> None:
        self.pool = pool
        self.targets: Floats = np.clip(targets, *data_range)
        self.data_range = data_range
        self.budget = budget
        self.journal = journal
        self._keys = keys or [str(row) for row in range(len(pool))]
        self.reference: Reference | None = None  # what the targets are, and how far they are from twice its evaluations
        self.reference_error: float | None = None
        self.trajectory: Trajectory | None = None
        self._seen: set[bytes] = set()

    def square(self, program: Program, rows: Rows) -> float:
        """Sum over the samples `rows` of the mean squared error; inf when it is not finite. BudgetSpentError."""
        key = f"{program.digest} {self.key(rows)}"
        held = self.journal.number(key) if self.journal else None
        self.budget.charge(self.pool.cost(program, rows, self._seen), cached=held is not None)
        if held is not None:
            return held
        result = float(np.sum(self.squares(self.pool.sample(program, rows, self.budget.passes), rows)))
        result = result if math.isfinite(result) else math.inf
        if self.journal:
            self.journal.put(key, result)
        return result

    def tally(self, program: Program, rows: Rows) -> float:
        """Sum of squares: see `Criterion`."""
        return self.square(program, rows)

    def error(self, tally: float, seeds: int) -> float:
        """Root of the mean square."""
        return math.sqrt(tally / seeds)

    def expect(self, asked: Sequence[tuple[Program, Rows]]) -> None:
        """One after the other: the network itself uses all cores."""

    def key(self, rows: Rows) -> str:
        """What the samples `rows` and their targets depend on, as a name."""
        return content_key([self._keys[row] for row in rows])

    def squares(self, samples: Floats, rows: Rows) -> np.ndarray:
        """Mean squared error of each sample, float64 [m]."""
        with np.errstate(all="ignore"):
            difference = np.clip(samples, *self.data_range).astype(np.float64) - self.targets[rows]
            return np.mean(difference**2, axis=1)


def make_error_criterion(
    subject: Subject,
    backend: Backend,
    seeds: Sequence[int],
    given: Mapping[str, Any] | None,
    setting: Setting,
    reference: Reference,
    budget: Budget,
    progress: Stages,
    exact_enough: Program | None = None,
) -> ErrorCriterion:
    """The criterion on `seeds`, its targets from the cache or computed now. Raises InputError, BudgetSpentError.

    exact_enough: a sampler, for instance the default, to whose error that of a short reference is compared; where it is
    more than a tenth of it, a reference of twice the evaluations is computed.
    """
    contract = subject.contract
    conditions = conditions_of(contract, given, seeds)
    pool = Pool(BlackBox(backend, contract, conditions), noise(seeds, contract.shape).numpy())
    data = [[np.asarray(values[row]) for values in conditions] for row in range(len(seeds))]

    def computed(chosen: Reference, rows: range) -> tuple[Floats, list[str]]:
        """(samples, keys) of a reference for the first seeds."""
        program = chosen.compile(
            setting.schedule,
            prediction=setting.prediction,
            clip=setting.clip,
            t_start=setting.t_start,
            sigma_data=setting.sigma_data,
        )
        contract.feed_times(program.network_times)
        keys = [content_key(subject.digest, program.digest, seeds[row], *data[row]) for row in rows]
        store, expected = ArrayStore(cache_folder() / "reference"), budget.spent + program.nfe * len(rows)
        stage = f"reference: {program.solver} in {program.nfe} evaluations, {len(rows)} seeds"
        few = pool if len(rows) == len(pool) else pool.part(len(rows))
        found = targets(few, program, keys, store, budget, lambda done: progress(stage, done, expected))
        return found, keys

    def watched(chosen: Reference) -> Trajectory:
        """A reference's whole way for the first seeds."""
        program = chosen.compile(
            setting.schedule,
            prediction=setting.prediction,
            clip=setting.clip,
            t_start=setting.t_start,
            sigma_data=setting.sigma_data,
        )
        own = [part for row in few for part in (seeds[row], *data[row])]
        key = content_key(subject.digest, program.digest, *own)
        return trajectory(pool.part(len(few)), program, key, ArrayStore(cache_folder() / "reference"), budget)

    every, error, way, few = range(len(seeds)), None, None, range(min(CHECKED, len(seeds)))
    found, keys = computed(reference, every)
    if exact_enough is not None and reference.nfe == FEW:
        way = watched(reference.doubled())
        better = way.samples
        error = rms(found[: len(few)], better, subject.sample_range)
        plain = pool.part(len(few)).sample(exact_enough, np.arange(len(few)), budget.passes)
        budget.charge(exact_enough.nfe * len(few))
        inexact = not error <= ENOUGH * rms(plain, better, subject.sample_range)  # NaN too
        left = budget.left()
        if inexact and (left is None or reference.doubled().nfe * len(seeds) < MOST_OF_BUDGET * left):
            reference = reference.doubled()
            found, keys = computed(reference, every)
    journal = Journal(cache_folder() / "search" / f"{subject.digest}.jsonl")
    criterion = ErrorCriterion(pool, found, subject.sample_range, budget, journal, keys)
    criterion.reference, criterion.reference_error = reference, error
    criterion.trajectory = way or (watched(reference) if exact_enough is not None else None)
    return criterion


def rms(samples: Floats, truth: Floats, data_range: tuple[float, float]) -> float:
    """RMS distance of samples clipped to the data's range."""
    with np.errstate(all="ignore"):
        difference = np.clip(samples, *data_range).astype(np.float64) - np.clip(truth, *data_range)
        return float(np.sqrt(np.mean(difference**2)))
