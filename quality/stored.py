"""The program that an engine holds already stays unless what `tune` finds is better on the same seeds."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from ..engine.artifact import MANIFEST, read_artifact
from ..engine.compiler.program import Program
from .ranking import Ranked, Ranking, error_text
from .sampling.budget import BudgetSpentError
from .search.candidates import Setting
from .search.halving import Search


def stored_program(out: str | os.PathLike[str] | None, setting: Setting) -> Program | None:
    """The program of so many evaluations in the engine at `out`, if it can be judged as the candidates are."""
    if out is None or not (Path(out) / MANIFEST).exists():
        return None
    found = read_artifact(out, verify=False).programs.get(setting.nfe)
    return None if found is None or (found.noises and not setting.draws) else found


def evaluations_of(stored: Program | None, calibration: int, held_out: int) -> int:
    """What it takes to judge it."""
    return 0 if stored is None else stored.nfe * (calibration + held_out)


def against_stored(ranking: Ranking, stored: Program | None, search: Search, out: object) -> Ranking:
    """The ranking with `stored` before what it is better than: at the place of the winner it is kept.

    Both are judged on the held-out seeds, or where the winner was not, on the seeds that chose. Without evaluations
    for that the stored program is kept too. `ranking.stored` says which it was.
    """
    if stored is None or stored.digest == ranking[0].program.digest:
        return ranking
    criterion, best = search.criterion, ranking[0]
    on_held_out = best.held_out_error is not None
    try:
        chosen = np.arange(search.chosen_on)
        error, held_out = criterion.error(criterion.tally(stored, chosen), len(chosen)), None
        if on_held_out:
            held_out = criterion.error(criterion.tally(stored, search.held_out), len(search.held_out))
    except BudgetSpentError:
        error, held_out = math.nan, None
    found = held_out if on_held_out else error
    rival = best.held_out_error if on_held_out else best.error
    name, seeds = f"the {stored.solver} that {out} holds", "held-out seeds" if on_held_out else "the seeds that chose"
    mine = Ranked(stored.solver, stored.grid, stored.basis, stored.times[0], stored.clip, error, held_out, stored)
    if found is None or math.isnan(found):
        ranking.insert(0, mine)
        ranking.stored = f"{name} is kept: the budget did not pay for judging it; give more"
        ranking.keeps = True
    elif rival is not None and found <= rival:
        ranking.insert(0, mine)
        ranking.stored = f"{name} is kept: {error_text(found)} on {seeds}, the best found {error_text(rival)}"
        ranking.keeps = True
    else:
        ranking.stored = f"{name} gives way: {error_text(found)} on {seeds}, the best found {error_text(rival)}"
    return ranking
