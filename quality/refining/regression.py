"""A table by regression on the reference's way, and times chosen by it: forward runs alone, no derivatives.

    T[n] = argmin  sum over seeds |T[n, 0] noise + sum over m < n of T[n, 1 + m] z_m - x(t_n)|^2,   n < N
    T[N] the same with the clipped reference in x's place, outside the data's range as `Aim` counts it

x(t): the state of the reference's run at t, which the search has made anyway. z_m are the network's answers at the rows
found so far, so one run of N evaluations gives the whole table of any times. Times are moved one after the other, the
last first, along those of the reference's run and then between them (way.py); answers before the moved time are kept.

What is found is where refining begins: each row is the best for its state, not for the sample.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from ...engine.compiler.program import Program
from ...engine.compiler.schedule import Float64s
from ...engine.progress import Stages
from ..criteria.error import ErrorCriterion
from ..sampling.budget import BudgetSpentError
from .aim import OUTSIDE, as_tensor
from .dense import table_of, with_table
from .jacobian import at_times
from .options import Task
from .through_module import combined
from .way import Way

SLIDES = 1, -1, 2, -2, 4, -4  # along the reference's times
NARROW = 1, -1, 2, -2  # between them, when those gain nothing more; with the most seeds alone
RIDGE = 1e-6  # of the normal matrix's diagonal
GAIN = 5e-3  # less than this part of the error gained in a round is the end
SEEDS = 4, 64  # that choose times, least and most
SHARE = 0.4  # of a budget
USUAL_ROUNDS = 5  # of slides, or as much; a budget should pay for the first one, which gains most
SOLVERS = 4  # of the ranking whose times are tried
SOLVED = 5  # times that the last row is solved, since which elements are clipped changes with it


@final
@dataclass(frozen=True, eq=False)
class Fit:
    """places [N]: of the times on the reference's way. table [N+1, N+1]. error: RMS on the seeds of the fit."""

    places: tuple[int, ...]
    table: Float64s
    error: float


@final
class Regression:
    """Tables for `program`'s network on the first `seeds` rows of a criterion with paths."""

    def __init__(
        self, criterion: ErrorCriterion, program: Program, seeds: int, key: str, tell: Stages | None = None
    ) -> None:
        assert criterion.paths is not None
        self.criterion = criterion
        self.program = program
        self.way = Way(criterion.paths, program.schedule)
        self.rows = np.arange(seeds)
        self.key = f"regression 2 {key} {seeds}"
        self.best: Fit | None = None
        self._tell = tell or (lambda *_: None)
        self._noise = as_tensor(criterion.pool.noise[:seeds])
        self._tables: dict[tuple[int, ...], Fit] = {}
        self._last: tuple[tuple[int, ...], list[Any]] = ((), [])  # places of a run and its answers

    def search(self, starts: Iterable[tuple[int, ...]]) -> Fit | None:
        """The best fit, times moved from those of `starts`; what was found until the budget was spent."""
        with suppress(BudgetSpentError):
            for places in starts:
                self._tried(places)
            self._slid(SLIDES, along_known=True)
            if self.way.has_between and len(self.rows) >= SEEDS[1]:  # fewer would be fitted too well
                self._slid(NARROW, along_known=False)
        return self.best

    def _slid(self, slides: tuple[int, ...], *, along_known: bool) -> None:
        """Rounds over all times, while they gain."""
        while self.best is not None:
            before = self.best.error
            for n in reversed(range(self.program.nfe)):
                self._slide(n, slides, along_known=along_known)
            if not self.best.error < (1 - GAIN) * before:
                break

    def program_of(self, found: Fit) -> Program:
        """With the table and the times of a fit."""
        return with_table(self.program, found.table, self.way.times[list(found.places)])

    def last_row(self) -> Program:
        """The program on its own times, its last row solved anew. Raises BudgetSpentError."""
        program, way = self.program, []
        self.criterion.budget.charge(program.nfe * len(self.rows))
        self.criterion.pool.sample(program, self.rows, self.criterion.budget.passes, way)
        table = table_of(program)
        table[-1], _ = self._last_row(_flat([self._noise, *map(as_tensor, way[1::2])]))
        return with_table(program, table)

    def _slide(self, n: int, slides: tuple[int, ...], *, along_known: bool) -> None:
        """Move time n while that helps."""
        before = None
        while self.best is not None and self.best is not before:
            before, places = self.best, self.best.places
            first = places[n - 1] + 1 if n else 0
            last = places[n + 1] - 1 if n + 1 < len(places) else len(self.way.times) - 1
            line = f"refining: regression on {len(self.rows)} seeds, error {self.best.error:.4f}"
            self._tell(
                line, self.criterion.budget.spent, self.criterion.budget.evaluations or self.criterion.budget.spent
            )
            for slide in slides:
                place = self.way.slid(places[n], slide, along_known=along_known)
                if place is not None and first <= place <= last:
                    self._tried((*places[:n], place, *places[n + 1 :]))

    def _tried(self, places: tuple[int, ...]) -> None:
        found = self._tables[places] = self._tables.get(places) or self.fit(places)
        if np.isfinite(found.error) and (self.best is None or found.error < self.best.error):
            self.best = found

    def fit(self, places: tuple[int, ...]) -> Fit:
        """The table for these times. Raises BudgetSpentError."""
        journal, budget = self.criterion.journal, self.criterion.budget
        key = f"{self.key} {places}"
        held = journal.get(key) if journal else None
        with suppress(KeyError, TypeError, ValueError, OverflowError):  # damaged
            if held is not None:
                budget.charge(int(held["evaluations"]), cached=True)
                return Fit(places, np.asarray(held["table"], np.float64), float(held["error"]))
        spent = budget.spent
        found = self._run(places)
        if journal:
            record = {"table": found.table.tolist(), "error": found.error, "evaluations": budget.spent - spent}
            journal.put(key, record)
        return found

    def _run(self, places: tuple[int, ...]) -> Fit:
        pool, budget, count = self.criterion.pool, self.criterion.budget, len(places)
        fed = at_times(self.program, self.way.times[list(places)])
        shared = 0
        while shared < min(count, len(self._last[0])) and places[shared] == self._last[0][shared]:
            shared += 1
        answers = self._last[1][:shared]
        table = np.zeros((count + 1, count + 1))
        columns = [self._noise, *answers]
        for n, place in enumerate(places):
            known = _flat(columns[: n + 1])
            table[n, : n + 1] = _row(known, self.way.state(place, len(self.rows)))
            if n < shared:
                continue
            budget.charge(len(self.rows))
            budget.passes(len(self.rows))
            y = combined(as_tensor(table[n]), self._noise, columns[1:]).numpy()
            columns.append(as_tensor(pool.answer(fed, n, y, self.rows)))
        self._last = places, columns[1:]
        if not all(bool(one.isfinite().all()) for one in columns):
            return Fit(places, table, float("inf"))
        table[count], error = self._last_row(_flat(columns))
        return Fit(places, table, error)

    def _last_row(self, columns: Float64s) -> tuple[Float64s, float]:
        """(row, RMS error of the clipped sample): solved again while which elements are clipped changes."""
        target = self.criterion.targets[self.rows].reshape(-1).astype(np.float64)
        weight, wanted = np.ones_like(target), target
        best, row, error = np.inf, np.zeros(len(columns)), np.inf
        for _ in range(SOLVED):
            fresh = _row(columns * weight, weight * wanted)
            sample = fresh @ columns
            clipped = np.clip(sample, *self.criterion.data_range)
            square = float(np.mean((clipped - target) ** 2))
            loss = square + float(np.mean((OUTSIDE * (sample - clipped)) ** 2))
            if not loss < best:
                break
            best, row, error = loss, fresh, square**0.5
            inside = sample == clipped
            weight, wanted = np.where(inside, 1.0, OUTSIDE), np.where(inside, target, clipped)
        return row, error


def _flat(columns: list[Any]) -> Float64s:
    return np.stack([one.numpy().reshape(-1) for one in columns]).astype(np.float64)


def _row(columns: Float64s, target: Float64s) -> Float64s:
    """Ridge regression of target [e] on columns [n, e]."""
    normal = columns @ columns.T
    scale = np.sqrt(np.maximum(np.diag(normal), 1e-300))
    scaled = normal / np.outer(scale, scale) + RIDGE * np.eye(len(scale))
    return np.linalg.solve(scaled, (columns @ target) / scale) / scale


# Where refining begins.
def regressed(task: Task, further: Iterable[Program] = ()) -> tuple[Task, dict[str, Any] | None]:
    """The task with the regressed table for its start, where that is better on the validation seeds; and the record.

    further: programs whose times are tried beside the start's. Uses at most SHARE of what the budget has left.
    """
    criterion, program = task.criterion, task.start.program
    if not has_paths(task):
        return task, None
    assert criterion.paths is not None
    seeds = seeds_that_choose(criterion.budget.left(), program.nfe, criterion.paths.states.shape[1])
    if seeds is None:
        return task, None
    spent = criterion.budget.spent
    search = Regression(criterion, program, seeds, task.key(), task.tell)
    with criterion.budget.reserving(2 * len(task.validation) * program.nfe):
        found = search.search(_starts(search, task, further))
        found = found and _again(task, found, criterion.paths.states.shape[1])
    record: dict[str, Any] = {"seeds": seeds, "kept": False}
    with suppress(BudgetSpentError):
        if found is not None:
            better = search.program_of(found)
            before, after = (_error(criterion, one, task.validation) for one in (program, better))
            kept = after < before
            record |= {"times": better.times.tolist(), "validation": [before, after], "kept": kept}
            task = replace(task, start=replace(task.start, program=better)) if kept else task
    return task, {**record, "evaluations": criterion.budget.spent - spent}


def regressed_alone(task: Task, further: Iterable[Program] = ()) -> list[Program]:
    """With all that the budget has left: a table with times of its own, and the start with its last row solved anew.

    Both are fitted to all training seeds. Few may be fitted too well by the first, so that other seeds have to choose.
    """
    criterion, program = task.criterion, task.start.program
    if not has_paths(task):
        return []
    assert criterion.paths is not None
    paths, budget, last = criterion.paths.states.shape[1], criterion.budget, None
    with suppress(BudgetSpentError):
        last = Regression(criterion, program, paths, task.key()).last_row()
    left, again = budget.left(), paths * program.nfe
    most = min(SEEDS[1], paths)
    seeds = most if left is None else min(most, max(SEEDS[0], (left - again) // _slides(program.nfe)))
    search = Regression(criterion, program, seeds, task.key(), task.tell)
    with budget.reserving(again if seeds < paths else 0):
        found = search.search(_starts(search, task, further))
    found = found and (_again(task, found, paths) if seeds < paths else found)
    programs = [None if found is None else search.program_of(found), last]
    return [one for one in programs if one is not None]


def has_paths(task: Task) -> bool:
    """Whether the reference's way is known, at more times than the program has."""
    paths = task.criterion.paths
    return paths is not None and len(paths.times) > task.start.program.nfe


def _starts(search: Regression, task: Task, further: Iterable[Program]) -> dict[tuple[int, ...], None]:
    """Places of the start's times and of the further programs', each once; all among the reference's own."""
    way, found = search.way, dict[tuple[int, ...], None]()
    for one in (task.start.program, *further):
        found[tuple(way.known[place] for place in _places(way.times[way.known], one.times))] = None
    return found


def _again(task: Task, found: Fit, seeds: int) -> Fit:
    """The fit on all seeds with paths, or as it was where the budget does not pay for it."""
    with suppress(BudgetSpentError):
        again = Regression(task.criterion, task.start.program, seeds, task.key()).fit(found.places)
        return again if np.isfinite(again.error) else found
    return found


def seeds_that_choose(left: int | None, nfe: int, paths: int) -> int | None:
    """Of a search of times, so that SHARE of what is left pays for a round of slides; None where that is too few."""
    most = min(SEEDS[1], paths)
    if left is None:
        return most
    affordable = int(SHARE * left / _slides(nfe))
    return None if affordable < SEEDS[0] else min(most, affordable)


def usual_regression(nfe: int, seeds: int) -> int:
    """Evaluations without a budget, about."""
    return min(SEEDS[1], seeds) * USUAL_ROUNDS * _slides(nfe) + seeds * nfe


def _slides(nfe: int) -> int:
    """Evaluations of a round on one seed: what follows each moved time."""
    return len(SLIDES) * nfe * (nfe + 1) // 2


def _places(known: Float64s, times: Float64s) -> tuple[int, ...]:
    """The nearest of the known times, falling, each another one."""
    places = [int(np.argmin(np.abs(known - t))) for t in sorted(times, reverse=True)]
    for n in range(1, len(places)):
        places[n] = max(places[n], places[n - 1] + 1)
    for n in reversed(range(len(places))):
        places[n] = min(places[n], len(known) - len(places) + n)
    return tuple(places)


def _error(criterion: ErrorCriterion, program: Program, rows: np.ndarray) -> float:
    return float(np.sqrt(criterion.square(program, rows) / len(rows)))
