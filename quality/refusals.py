"""What a search cannot do, in one line: what was asked for, what was expected, what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ..engine.compiler.grid import Grid, check_grid
from ..engine.compiler.solvers import parse_solver
from ..engine.errors import InputError
from ..export.choice.sampler_choice import EXACT, is_exact
from .sampling.budget import Budget
from .sampling.reference import Reference
from .sampling.subject import Subject
from .search.candidates import Setting
from .search.left_out import left_out

LEAST_RUNS = 120  # behind the reference, of a search that shares a budget with refining
# Elements of the samples for each coefficient of a table's last row, where no validation seeds tell a table that fits
# too well. With 5 samples of a single element a table of 5 evaluations had 4.5 times the tuned sampler's error, and was
# kept.
LEAST_FIT = 2


def check_asked(nfe: int, solvers: Iterable[str], reference: int | None) -> None:
    """Raises InputError for an unknown solver and for a reference hardly finer than what it judges."""
    for solver in solvers:
        parse_solver(solver)
    if reference is not None and reference <= nfe:
        raise InputError(
            f"a reference of {reference} evaluations for NFE {nfe}, expected more than {nfe}; leave it out for the "
            "usual one"
        )


def check_grids(grids: Iterable[Grid], subject: Subject) -> None:
    """Raises InputError for a rule that nobody knows, and for a scheduler's times where there is no scheduler."""
    for grid in grids:
        if not is_exact(grid):
            check_grid(grid)
        elif subject.engine is not None:
            raise InputError(f"grid '{EXACT}': an engine holds no scheduler; give the folder that it was built from")
        elif subject.network is None or subject.network.convention is None:
            name = subject.contract.name
            raise InputError(f"grid '{EXACT}': network '{name}' has no scheduler; give a rule: trailing")


def no_refining(limit: Budget, nfe: int) -> str:
    """Why a search with refining is one without."""
    return (
        f"not refined: behind the reference budget {limit} pays for fewer than {LEAST_RUNS} samples of {nfe} "
        "evaluations, which the search had; give more to refine"
    )


def too_few_to_fit(limit: Budget, nfe: int, seeds: int, elements: int) -> str | None:
    """Why regression alone, which the budget pays for, would fit a table too well; None where it has enough."""
    needed = math.ceil(LEAST_FIT * (nfe + 1) / elements)
    if seeds >= needed:
        return None
    return (
        f"not refined: budget {limit} pays for {seeds} samples to fit a table to, expected {needed} or more for {nfe} "
        f"evaluations and samples of so few elements ({elements}); the search had it all, give more to refine"
    )


def too_little(limit: Budget, reference: Reference, seeds: int, extra: int) -> str:
    """Why the reference was not done, and what fits if half of the budget goes into it and half into the search.

    extra: seeds of refining's own, at least.
    """
    said = (
        f"budget {limit} does not pay for the reference of {seeds} seeds in {reference.nfe} evaluations "
        f"({seeds * reference.nfe})"
    )
    fits = limit.affords() // (2 * reference.nfe)
    enough = f"give at least {2 * seeds * reference.nfe}" if limit.evaluations is not None else "give more time"
    if fits <= extra:
        return f"{said}; {enough}{', or leave refine out' if extra else ''}"
    calibration = max(1, (fits - extra) // 3)
    held_out = min(2 * calibration, fits - extra - calibration)
    return f"{said}; {enough}, or fewer seeds: --calibration {calibration} --held-out {held_out}"


def nothing_found(setting: Setting, solvers: Any, grids: Any, bases: Any, *, spent: bool) -> str:
    """Why a search ended without a candidate."""
    if spent:
        return "the budget is spent before one candidate was run; give more"
    if lines := left_out(setting, solvers, grids, bases):
        return f"no candidate is left: {'; '.join(lines)}"
    asked = f"solvers {solvers or 'all'}, grids {grids or 'all'}, bases {bases or 'all'}"
    return f"no candidate is defined for NFE {setting.nfe} on schedule {setting.schedule} ({asked}); allow more"
