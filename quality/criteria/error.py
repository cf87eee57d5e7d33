"""The error of a sampler: its distance to the same network's many-step samples of the same seeds.

    error = RMS over seeds and elements of clip(sample) - clip(reference), clipped to the range of the data

`tune` makes it small, `compare` reports it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from ..sampling.reference import FEW, Paths, Reference, Trajectory, targets, trajectory
from ..sampling.subject import BlackBox, Subject
from ..search.candidates import Setting

CHECKED = 2  # seeds on which the error of a short reference is found
ENOUGH = 0.1  # of the default sampler's error
PATH_BYTES = 64 << 20  # of states along the reference's way
MOST_OUTSIDE = 0.9  # of the reference's values, beyond which errors are doubted
MOST_OF_BUDGET = 0.4  # that an exacter reference may take; else the first is kept, and its error told


def doubt_of_range(targets: Floats, data_range: tuple[float, float]) -> str | None:
    """One line where nearly all of the reference lies outside of the data's range, so that errors say little."""
    low, high = data_range
    outside = float(np.mean((targets < low) | (targets > high))) if targets.size else 0.0
    if outside < MOST_OUTSIDE:
        return None
    return (
        f"{100 * outside:.0f} % of the reference's values lie outside of the data's range {low:g}..{high:g}, and "
        "errors are those of clipped samples; give the range of your data (--data-range)"
    )


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
        self.doubt = doubt_of_range(targets, data_range)
        self.data_range = data_range
        self.budget = budget
        self.journal = journal
        self._keys = keys or [str(row) for row in range(len(pool))]
        self.reference: Reference | None = None  # what the targets are, and how far they are from twice its evaluations
        self.reference_error: float | None = None
        self.trajectory: Trajectory | None = None
        self.paths: Paths | None = None  # the reference's way of the first seeds
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

    def samples(self, program: Program, rows: Rows) -> Floats:
        """[m, elements], counted but for what was run on these rows before. Raises BudgetSpentError."""
        self.budget.charge(self.pool.cost(program, rows, self._seen))
        return self.pool.sample(program, rows, self.budget.passes)

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


@final
@dataclass(frozen=True, eq=False)
class _References:
    """Long programs on the first seeds of a pool, from the cache or computed now. given: each seed's conditions."""

    subject: Subject
    pool: Pool
    seeds: Sequence[int]
    given: Sequence[Sequence[np.ndarray]]
    setting: Setting
    budget: Budget
    store: ArrayStore
    progress: Stages

    def samples(self, chosen: Reference, count: int, paths: int = 0) -> tuple[Floats, list[str], Paths | None]:
        """Of the first `count` seeds, the keys of what they depend on, and the way of the first `paths`."""
        program, budget = self._program(chosen), self.budget
        self.subject.contract.feed_times(program.network_times)
        head = (self.subject.digest, program.digest)
        keys = [content_key(*head, self.seeds[row], *self.given[row]) for row in range(count)]
        stage = f"reference: {program.solver} in {program.nfe} evaluations, {count} seeds"
        expected = budget.spent + program.nfe * count
        pool, elements = self._part(count), self.pool.noise.shape[1]
        paths = min(paths, count, PATH_BYTES // (4 * program.nfe * elements))
        states = np.empty((program.nfe, paths, elements), np.float32) if paths else None
        found = targets(
            pool, program, keys, self.store, budget, lambda done: self.progress(stage, done, expected), states
        )
        return found, keys, None if states is None else Paths(program.times, states)

    def trajectory(self, chosen: Reference, count: int) -> Trajectory:
        """The whole way of the first `count` seeds."""
        program = self._program(chosen)
        own = [part for row in range(count) for part in (self.seeds[row], *self.given[row])]
        key = content_key(self.subject.digest, program.digest, *own)
        return trajectory(self.pool.part(count), program, key, self.store, self.budget)

    def _part(self, count: int) -> Pool:
        return self.pool if count == len(self.pool) else self.pool.part(count)

    def _program(self, chosen: Reference) -> Program:
        setting = self.setting
        return chosen.compile(
            setting.schedule,
            prediction=setting.prediction,
            clip=setting.clip,
            t_start=setting.t_start,
            sigma_data=setting.sigma_data,
        )


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
    paths: int = 0,
) -> ErrorCriterion:
    """The criterion on `seeds`, its targets from the cache or computed now. Raises InputError, BudgetSpentError.

    exact_enough: a sampler, for instance the default, to whose error that of a short reference is compared; where it is
    more than a tenth of it, a reference of twice the evaluations is computed. paths: seeds whose whole way is kept, as
    many as fit into PATH_BYTES.
    """
    conditions = conditions_of(subject.contract, given, seeds)
    pool = Pool(BlackBox(backend, subject.contract, conditions), noise(seeds, subject.contract.shape).numpy())
    data = [[np.asarray(values[row]) for values in conditions] for row in range(len(seeds))]
    store = ArrayStore(cache_folder() / "reference")
    long = _References(subject, pool, seeds, data, setting, budget, store, progress)

    error, way, few = None, None, min(CHECKED, len(seeds))
    found, keys, kept = long.samples(reference, len(seeds), paths)
    if exact_enough is not None and reference.nfe == FEW:
        way = long.trajectory(reference.doubled(), few)
        error = rms(found[:few], way.samples, subject.sample_range)
        plain = pool.part(few).sample(exact_enough, np.arange(few), budget.passes)
        budget.charge(exact_enough.nfe * few)
        inexact = not error <= ENOUGH * rms(plain, way.samples, subject.sample_range)  # NaN too
        left = budget.left()
        if inexact and (left is None or reference.doubled().nfe * len(seeds) < MOST_OF_BUDGET * left):
            reference = reference.doubled()
            found, keys, kept = long.samples(reference, len(seeds), paths)
    journal = Journal(cache_folder() / "search" / f"{subject.digest}.jsonl")
    criterion = ErrorCriterion(pool, found, subject.sample_range, budget, journal, keys)
    criterion.reference, criterion.reference_error, criterion.paths = reference, error, kept
    criterion.trajectory = way or (long.trajectory(reference, few) if exact_enough is not None else None)
    return criterion


def rms(samples: Floats, truth: Floats, data_range: tuple[float, float]) -> float:
    """RMS distance of samples clipped to the data's range."""
    with np.errstate(all="ignore"):
        difference = np.clip(samples, *data_range).astype(np.float64) - np.clip(truth, *data_range)
        return float(np.sqrt(np.mean(difference**2)))
