"""The search for the best few-step sampler of a network: successive halving over calibration seeds.

error = RMS over seeds and elements of clip(sample) - clip(reference), clipped to the range of the data

or whatever another `Criterion` says, such as a Frechet distance to real pictures.

Every candidate is run on the first few seeds, the better part goes on to twice as many, and so on (successive halving:
Jamieson & Talwalkar, arXiv 1502.07943); what a candidate has been run on is never run again. Then the neighbours of the
best are raced against them, until none is better, and the times of the best grids are moved one by one. At last the
best are run on held-out seeds that chose nothing. The first candidate, the default, and the best DDIM go all the way.

With a `Pace` each stage has its share, and the candidates come in the order in which they won elsewhere (prior.py).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, final

import numpy as np

from ...engine.compiler.program import Program
from ...engine.compiler.schedule import parse_schedule
from ...engine.progress import Stages
from ..sampling.budget import BudgetSpentError
from ..sampling.pool import Rows
from .candidates import Candidate, Setting, compiled, grid_points, neighbours, with_point
from .criterion import Criterion
from .pace import FEWEST, JUDGED, NEIGHBOURS, Pace, halving_runs, kept, rungs_of

GENERATIONS = 3  # rounds of neighbours
PARENTS = 4  # the best, whose neighbours are raced in each round
SLACK = 1.15  # drop a neighbour whose error exceeds this multiple of the best error on the same seeds
TIGHT = 1.04  # the same for a neighbour with only one time moved
SWEEPS = (0.3, 0.15, 0.3)  # how far a time is moved, as a part of the distance to the next time
FAMILIES = 3  # of solvers whose best grids have their times moved: what rules allow is not what a solver could do
BEHIND = 1.2  # a family whose error is this times the best one's after a sweep is swept no more


@final
@dataclass(eq=False)
class Trial:
    """A candidate and what is known of it: its tally so far, and the errors on the first m calibration seeds."""

    candidate: Candidate
    program: Program
    tally: Any = None
    errors: dict[int, float] = field(default_factory=dict)
    held_out_error: float | None = None
    stays: bool = False  # goes all the way, however it does

    @property
    def seeds(self) -> int:
        """Calibration seeds that it has been run on."""
        return max(self.errors, default=0)

    def error(self, seeds: int | None = None) -> float:
        """On the first `seeds` calibration seeds, by default on all it has been run on."""
        seeds = seeds or self.seeds
        return self.errors[seeds] if seeds else math.inf


@final
class Search:
    """Successive halving and races on the pool's rows `calibration`; `held_out` rows judge the best at the end."""

    def __init__(
        self, criterion: Criterion, setting: Setting, calibration: int, held_out: Rows, progress: Stages
    ) -> None:
        self.criterion = criterion
        self.setting = setting
        self.calibration = calibration
        self.held_out = held_out
        self.trials: list[Trial] = []
        self.complete = True
        self._progress = progress
        self._seen: set[str] = set()
        self._expected = 0
        self._begun = 0
        self.pace: Pace | None = None
        self.rungs = rungs_of(calibration)

    def run(
        self,
        candidates: Iterable[Candidate],
        seed: int = 0,
        *,
        local: bool = True,
        pace: Pace | None = None,
        default_first: bool = True,
    ) -> list[Trial]:
        """The trials that were run on all calibration seeds, best first; the best have held-out errors.

        candidates: with a pace in the order in which they are tried, otherwise the first, and then the others in any.
        default_first: the first is the default. When the budget is spent, those that got furthest: then `complete` is
        False.
        """
        self.pace, self._begun = pace, self.criterion.budget.spent
        every = iter(candidates)
        first = list(islice(every, 1))
        if pace is None:
            order = list(every)
            random.Random(seed).shuffle(order)  # when the budget ends the first round, it has seen a fair part
            fresh = [Trial(*pair) for pair in compiled([*first, *order], self.setting, self._seen)]
        else:
            self.rungs = rungs_of(pace.seeds)
            few = islice(compiled(chain(first, every), self.setting, self._seen), pace.candidates)
            fresh = [Trial(*pair) for pair in few]
        for trial in fresh[:1]:
            trial.stays = default_first and [trial.candidate] == first
        self._expected = self.criterion.budget.spent + self._forecast(len(fresh))
        try:
            self._halve(fresh)
            if local:
                self._race()
                self._sweep()
            self._finish()
            self._measure_held_out()
        except BudgetSpentError:
            self.complete = False
        return self.ranked()

    @property
    def chosen_on(self) -> int:
        """Calibration seeds of the ranking's errors."""
        return max((trial.seeds for trial in self.trials), default=0)

    def ranked(self) -> list[Trial]:
        """The trials with the most seeds, by error."""
        most = max((trial.seeds for trial in self.trials), default=0)
        return sorted((trial for trial in self.trials if trial.seeds == most and most), key=Trial.error)

    def _forecast(self, count: int) -> int:
        """Evaluations that are expected."""
        held_out = self._judged * len(self.held_out) * self.setting.nfe
        if self.pace is not None:
            return self.pace.allowance + held_out
        return halving_runs(count, self.rungs, self._fewest) * self.setting.nfe + held_out

    @property
    def _fewest(self) -> int:
        return FEWEST if self.pace is None else self.pace.fewest

    @property
    def _judged(self) -> int:
        return JUDGED if self.pace is None else self.pace.judged

    def _spent(self, part: float) -> bool:
        """Whether a stage that ends at `part` of the allowance has had its share."""
        budget = self.criterion.budget
        if self.pace is None:
            return False
        late = budget.seconds is not None and budget.part > self.pace.ends
        return late or budget.spent - self._begun >= part * self.pace.allowance

    def _extend(self, trial: Trial, seeds: int, stage: str) -> None:
        """Run a trial on the calibration seeds that it lacks up to `seeds`."""
        rows = np.arange(trial.seeds, seeds)
        if len(rows):
            tally = self.criterion.tally(trial.program, rows)
            trial.tally = trial.tally + tally if trial.seeds else tally
            trial.errors[seeds] = self.criterion.error(trial.tally, seeds)
            done = self.criterion.budget.spent
            self._progress(stage, done, max(done, self._expected))

    def _expect(self, trials: Sequence[Trial], seeds: int) -> None:
        self.criterion.expect([(one.program, np.arange(one.seeds, seeds)) for one in trials if one.seeds < seeds])

    def _halve(self, trials: list[Trial]) -> None:
        self.trials = trials
        for rung in self.rungs:
            self._expect(trials, rung)
            for trial in trials:
                self._extend(trial, rung, f"{len(trials)} candidates on {rung} of {self.calibration} seeds")
            by_error = sorted(trials, key=lambda trial: trial.error(rung))
            trials = by_error[: kept(len(trials), self._fewest)]
            trials += [trial for trial in self._always(by_error) if trial not in trials]

    def _always(self, by_error: Sequence[Trial]) -> list[Trial]:
        """What goes all the way, to compare with: the best DDIM, and the default."""
        plain = [trial for trial in by_error if trial.candidate.solver == "ddim"][:1]
        return plain + [trial for trial in by_error if trial.stays and trial not in plain]

    def _race(self) -> None:
        """Neighbours of the best against the best, generation after generation."""
        expanded: set[Candidate] = set()
        for generation in range(GENERATIONS):
            parents = [trial for trial in self.ranked()[:PARENTS] if trial.candidate not in expanded]
            if not parents:
                return
            near = [one for parent in parents for one in neighbours(parent.candidate, self.setting)]
            expanded.update(parent.candidate for parent in parents)
            fresh = [Trial(*pair) for pair in compiled(near, self.setting, self._seen)]
            self._expected += len(fresh) * self.rungs[0] * self.setting.nfe
            self._expect(fresh, self.rungs[0])
            for trial in fresh:
                if self._spent(NEIGHBOURS):
                    return
                self.trials.append(trial)
                self._race_one(
                    trial, self.ranked()[0], f"{len(fresh)} neighbours of the best, round {generation + 1}", SLACK
                )

    def _sweep(self) -> None:
        """The times of the best grids moved one by one, for the best of three families while it keeps up."""
        families: dict[str, Trial] = {}
        for trial in self.ranked():
            families.setdefault(trial.program.solver.partition(":")[0], trial)
        swept = list(families.values())[:FAMILIES]
        for part in SWEEPS:
            swept = [self._sweep_once(best, part) for best in swept]
            swept = [best for best in swept if best.error() < BEHIND * self.ranked()[0].error()]

    def _sweep_once(self, best: Trial, part: float) -> Trial:
        """Each time of a grid moved either way, and left where the error is less; the best of it."""
        discrete = parse_schedule(self.setting.schedule).discrete
        points = grid_points(best.candidate, self.setting)
        self._expected += 2 * self.setting.nfe * self.rungs[-1] * self.setting.nfe  # about two moves an evaluation
        for place in range(1, len(points) - 1):
            for way in (part, -part):
                if self._spent(1.0):
                    return best
                near = with_point(best.candidate, points, place, way, discrete)
                for pair in compiled([near], self.setting, self._seen):
                    trial = Trial(*pair)
                    self.trials.append(trial)
                    self._race_one(trial, best, f"{best.program.solver}: its times, one by one", TIGHT)
                    if trial.seeds == self.rungs[-1] and trial.error() < best.error():
                        best, points = trial, grid_points(trial.candidate, self.setting)
        return best

    def _race_one(self, trial: Trial, best: Trial, stage: str, slack: float) -> None:
        """Run a trial on more and more seeds while it is not clearly worse than the best on the same."""
        for rung in self.rungs:
            self._extend(trial, rung, stage)
            if trial.error(rung) > slack * best.error(rung):
                return

    def _finish(self) -> None:
        """The best run on the calibration seeds that did not choose, where the pace let few choose."""
        if self.pace is None or not self.pace.finishes or self.rungs[-1] == self.calibration:
            return
        ranked = self.ranked()
        best = ranked[: self._judged]
        best += [one for one in self._always(ranked) if one not in best]
        for trial in best:
            self._extend(trial, self.calibration, "all calibration seeds")

    def _measure_held_out(self) -> None:
        if not len(self.held_out):
            return
        ranked = self.ranked()
        judged = ranked[: self._judged]
        judged += [one for one in self._always(ranked) if one not in judged]
        self.criterion.expect([(trial.program, self.held_out) for trial in judged])
        for trial in judged:
            tally = self.criterion.tally(trial.program, self.held_out)
            trial.held_out_error = self.criterion.error(tally, len(self.held_out))
            self._progress(
                "held-out seeds", self.criterion.budget.spent, max(self.criterion.budget.spent, self._expected)
            )
