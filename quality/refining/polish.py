"""The winner of a search refined on seeds of its own, and kept only if it is better on the held-out seeds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ...engine.compiler.program import Program
from ...engine.progress import Stages
from ..criteria.error import ErrorCriterion
from ..ranking import Ranked
from ..sampling.budget import BudgetSpentError
from .refine import Iteration, Refinement, finished

# Seeds that refining fits and watches. A few seeds carry most of the error, so it needs more than ranking does: with 32
# the MNIST network at 8 NFE came to 0.023 on the training seeds and 0.047 on others.
TRAINING, VALIDATION = 96, 32
STEPS = 20  # of Levenberg-Marquardt at most; it stops by itself


def seeds_needed(calibration: int) -> int:
    """How many more seeds than the calibration seeds refining needs."""
    return max(0, TRAINING - calibration) + VALIDATION


def refined(
    criterion: ErrorCriterion, ranked: list[Ranked], calibration: int, held_out: np.ndarray, tell: Stages
) -> tuple[list[Ranked], dict[str, Any]]:
    """The ranking with the refined winner in front, unless it is worse on the held-out seeds; and the record."""
    start = ranked[0]
    first = max(TRAINING, calibration)
    training, validation = np.arange(first), np.arange(first, first + VALIDATION)

    def after(iteration: Iteration) -> None:
        made, spent = len(iteration.training) - 1, criterion.budget.spent
        tell(f"refining: step {made}, validation error {iteration.validation[-1]:.4f}", spent, spent)

    found = Refinement(criterion, training, validation).run(start.program, STEPS, after)
    program = finished(found.program, start.solver)
    record: dict[str, Any] = {
        "from": start.solver,
        "grid": start.grid,
        "basis": start.basis,
        "steps": max(0, len(found.training) - 1),
        "training_seeds": len(training),
        "validation_seeds": len(validation),
        "training": list(found.training),
        "validation": list(found.validation),
        "held_out_before": start.held_out_error,
        "held_out_after": None,
        "kept": False,
    }
    try:
        error = _error(criterion, program, np.arange(calibration))
        held = _error(criterion, program, held_out) if len(held_out) else None
    except BudgetSpentError:
        return ranked, record
    record["held_out_after"] = held
    if len(found.training) < 2 or (held is not None and held >= (start.held_out_error or math.inf)):
        return ranked, record
    record["kept"] = True
    better = replace(start, solver=program.solver, error=error, held_out_error=held, program=program)
    return [better, *ranked], record


def _error(criterion: ErrorCriterion, program: Program, rows: np.ndarray) -> float:
    return math.sqrt(criterion.square(program, rows) / len(rows))
