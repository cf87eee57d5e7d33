"""How a search spends what it has: decided before anything of it is spent.

    left after reference and held-out runs = candidates 45 % + neighbours 20 % + times 35 %

A run is one program on one seed. Programs share evaluations (sampling/prefixes.py), so more runs fit than the plain
count says; what a stage leaves over goes to the next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from ..sampling.budget import Budget

USUAL_RUNS = 60  # for each calibration seed, where no budget is given
CANDIDATES, NEIGHBOURS = 0.45, 0.65  # parts of the allowance that are spent when these stages end
RUNS_OF_A_SEED = 40  # that a search should pay for: with fewer, fewer of the calibration seeds choose
FEWEST_SEEDS = 4
FOR_FINISHING = 0.25  # of a budget, at most, to run the best on all calibration seeds
KEEP = 0.4  # of the candidates, at each doubling of the seeds
FEWEST, FEWEST_OF_FEW = 12, 4  # candidates that are kept at least, from 96 and from few
JUDGED, JUDGED_OF_FEW = 10, 2  # run on the held-out seeds
SHARED = 0.75  # of a program's evaluations that are its own, in the first stage


@final
@dataclass(frozen=True)
class Pace:
    """What each stage gets.

    candidates: how many are admitted. fewest: kept at each rung. judged: on the held-out seeds. allowance: evaluations
    of all stages but the judging. ends: the part of a budget in time after which nothing but the judging is begun.
    seeds: the calibration seeds that choose. finishes: whether the best are then run on all of them.
    """

    candidates: int
    fewest: int
    judged: int
    allowance: int
    ends: float
    seeds: int
    finishes: bool


def rungs_of(calibration: int) -> tuple[int, ...]:
    """The numbers of seeds that candidates are run on, one after the other."""
    return tuple(sorted({max(1, calibration // part) for part in (8, 4, 2, 1)}))


def kept(count: int, fewest: int) -> int:
    """How many of `count` go on."""
    return min(count, max(fewest, math.ceil(KEEP * count)))


def halving_runs(count: int, rungs: tuple[int, ...], fewest: int) -> int:
    """Runs that `count` candidates take."""
    runs, done = 0, 0
    for rung in rungs:
        runs += count * (rung - done)
        count, done = kept(count, fewest), rung
    return runs


def pace_of(budget: Budget, nfe: int, calibration: int, held_out: int, share: float = 1.0) -> Pace:
    """The pace for `share` of what a budget has left, or for the usual number of runs without one."""
    left = budget.left()
    left = None if left is None else int(share * left)
    usual = USUAL_RUNS * calibration * nfe
    judged = JUDGED if left is None else JUDGED_OF_FEW
    # DDIM and the default are judged too.
    finishes = left is None or (judged + 2) * (calibration + held_out) * nfe < FOR_FINISHING * left
    one = (calibration + held_out if finishes else held_out) * nfe
    while judged < JUDGED and left is not None and (judged + 3) * one < 0.15 * left:
        judged += 1
    reserve = (judged + 2) * one
    allowance = usual if left is None else max(left - reserve, left // 2)
    runs = allowance / (SHARED * nfe)
    seeds = calibration if left is None else int(min(calibration, max(FEWEST_SEEDS, runs / RUNS_OF_A_SEED)))
    rungs, runs, count = rungs_of(seeds), CANDIDATES * runs, 1
    while halving_runs(count + 1, rungs, _fewest(count + 1)) <= runs:
        count += 1
    part = budget.part
    ends = part + share * (1 - part) * (1 - reserve / max(left or 1, reserve + 1))
    return Pace(max(count, 3), _fewest(count), judged, allowance, ends, seeds, finishes)


def _fewest(count: int) -> int:
    return max(FEWEST_OF_FEW, min(FEWEST, count // 8))


def plan_line(pace: Pace, budget: Budget, nfe: int, refining: int) -> str:
    """What will be done, how long that takes at the speed so far, and what more would bring, before it is begun.

    refining: evaluations that it takes without a budget, 0 without it.
    """
    speed = budget.speed
    limit = budget.left()
    total = pace.allowance + refining if limit is None else limit
    takes = "" if not speed else f", about {duration(total / speed)} at {1000 / speed:.3g} ms an evaluation"
    more = f"twice that would begin with {2 * pace.candidates}"
    rest = " and refining" if refining else ""
    return (
        f"plan: {total} evaluations for the search{rest}{takes}; it begins with {pace.candidates} samplers of "
        f"{nfe} evaluations, {more}"
    )


def duration(seconds: float) -> str:
    """90 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
