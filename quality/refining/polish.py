"""The winner of a search refined on seeds of its own, and kept only if it is better on the held-out seeds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ...engine.compiler.program import Program
from ...engine.errors import InputError
from ...engine.progress import Stages
from ..criteria.error import ErrorCriterion
from ..ranking import Ranked
from ..sampling.budget import BudgetSpentError
from ..sampling.pool import Floats
from .aim import as_tensor
from .dense import fits
from .methods import Task, both, by_gradient, own_buffers, whole_table
from .options import Refining


def refined(
    criterion: ErrorCriterion,
    ranked: list[Ranked],
    calibration: int,
    held_out: np.ndarray,
    options: Refining,
    tell: Stages,
) -> tuple[list[Ranked], dict[str, Any]]:
    """The ranking with the refined winner in front, unless it is worse on the held-out seeds; and the record."""
    start, budget = ranked[0], criterion.budget
    first = options.training
    training, validation = np.arange(first), np.arange(first, first + options.validation)
    task = Task(criterion, start, training, validation, options, tell)
    dense = fits(start.program.nfe, options.buffers) and not start.program.noises
    if not dense and options.layers is not None:
        raise InputError(
            f"features need the whole table, which {start.program.nfe} evaluations do not fit into "
            f"{options.buffers or 'the most'} buffers; leave features out, or allow more"
        )
    spent = budget.spent
    method = by_gradient if options.by_gradient else whole_table if dense else own_buffers
    if method is whole_table and options.layers is None and budget.left() is None:
        method = both
    with budget.reserving((calibration + 2 * len(held_out) + 2 * len(validation)) * start.program.nfe):
        program, record = method(task)
    record = {
        "from": start.solver,
        "grid": start.grid,
        "basis": start.basis,
        "method": "adam" if options.by_gradient else "levenberg-marquardt",
        "family": "whole table" if dense else "own buffers",
        "features": None if options.layers is None else options.layers.name,
        "training_seeds": len(training),
        "validation_seeds": len(validation),
        **record,
        "buffers_before": start.program.buffers,
        "buffers": program.buffers,
        "evaluations": budget.spent - spent,
        "held_out_before": start.held_out_error,
        "held_out_after": None,
        "kept": False,
    }
    try:
        error = math.sqrt(criterion.square(program, np.arange(calibration)) / calibration)
        better = bool(record["steps"]) and _better(task, program, held_out, record)
    except BudgetSpentError:
        return ranked, record
    if not better:
        return ranked, record
    record["kept"] = True
    held = record["held_out_after"]
    found = replace(start, solver=program.solver, error=error, held_out_error=held, program=program)
    return [found, *ranked], record


def _better(task: Task, program: Program, held_out: np.ndarray, record: dict[str, Any]) -> bool:
    """Whether the refined program is better on the held-out seeds, in what it was refined for, and not by chance.

    The record gets the held-out error, and what was compared. Validation seeds count too where chance is judged.
    """
    criterion, start = task.criterion, task.start
    rows = np.append(task.validation, held_out)
    criterion.budget.charge(2 * len(rows) * program.nfe)
    samples = [criterion.pool.sample(one, rows) for one in (start.program, program)]
    squares = [criterion.squares(one, rows) for one in samples]
    judged = squares[1][len(rows) - len(held_out) :]
    record["held_out_after"] = float(np.sqrt(np.mean(judged))) if len(held_out) else None
    if task.options.layers is not None:
        before, after = _aimed(task, samples, rows)
        record |= {"held_out_loss_before": before, "held_out_loss_after": after}
        return after < before
    gains = squares[0] - squares[1]
    gain, doubt = float(np.mean(gains)), float(np.std(gains, ddof=1) / math.sqrt(len(rows)))
    record |= {"gain": gain, "gain_standard_error": doubt}
    after = record["held_out_after"]
    return gain > doubt and (after is None or after < (start.held_out_error or math.inf))


def _aimed(task: Task, samples: list[Floats], rows: np.ndarray) -> tuple[float, float]:
    """The loss of two programs' samples on the seeds `rows`, each part 1 for the first."""
    aim, shape = task.aim(), task.criterion.pool.shape
    before, after = (as_tensor(one, shape) for one in samples)
    aim.weigh(before, as_tensor(rows))
    return aim.value(before, as_tensor(rows)), aim.value(after, as_tensor(rows))
