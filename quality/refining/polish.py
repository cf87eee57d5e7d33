"""The winner of a search refined on seeds of its own, and kept only if it is better on the held-out seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from ...engine.cache import content_key
from ...engine.compiler.program import Program
from ...engine.errors import InputError
from ...engine.progress import Stages
from ..criteria.error import ErrorCriterion
from ..perceptual.layers import Layers
from ..ranking import Ranked
from ..sampling.budget import BudgetSpentError
from .aim import Aim, as_tensor
from .dense import fits, jacobian_cost
from .gauss_newton import GaussNewton, Step
from .refine import Refinement, finished

# Seeds that refining fits and watches. A few seeds carry most of the error, so it needs more than ranking does: with 32
# the MNIST network at 8 NFE came to 0.023 on the training seeds and 0.047 on others.
TRAINING, VALIDATION = 96, 32
FEWEST = 16, 8  # of these, that a small budget leaves
STEPS = 24  # at most; refining stops by itself
METRIC_ROWS = 4, 24  # seeds of a Jacobian, least and most
ITERATIONS = 8  # that a budget should pay for
TRIED = 4  # runs of the Jacobian's seeds in which dampings are tried


@final
@dataclass(frozen=True)
class Refining:
    """What a refinement may do. buffers: of the program, None for all that a table takes, at most as many as a program
    may have. layers: None, or what is compared beside pixels. training, validation: seeds of its own, first and after.
    """

    training: int = TRAINING
    validation: int = VALIDATION
    buffers: int | None = None
    layers: Layers | None = None


def sized(calibration: int, affordable: int | None, reference: int) -> tuple[int, int]:
    """(training, validation) seeds for so many affordable evaluations, the reference being a fifth of them at most."""
    if affordable is None:
        return max(TRAINING, calibration), VALIDATION
    both = affordable // (5 * reference)
    training = max(FEWEST[0], calibration, min(TRAINING, both * 3 // 4))
    return training, max(FEWEST[1], min(VALIDATION, training // 3))


def refined(
    criterion: ErrorCriterion,
    ranked: list[Ranked],
    calibration: int,
    held_out: np.ndarray,
    options: Refining,
    tell: Stages,
) -> tuple[list[Ranked], dict[str, Any]]:
    """The ranking with the refined winner in front, unless it is worse on the held-out seeds; and the record."""
    start = ranked[0]
    first = max(options.training, calibration)
    training, validation = np.arange(first), np.arange(first, first + options.validation)
    dense = fits(start.program.nfe, options.buffers) and not start.program.noises
    if not dense and options.layers is not None:
        raise InputError(
            f"features need the whole table, which {start.program.nfe} evaluations do not fit into "
            f"{options.buffers or 'the most'} buffers; leave features out, or allow more"
        )
    spent = criterion.budget.spent
    method = _whole_table if dense else _own_buffers
    program, record = method(criterion, start, training, validation, options, tell)
    record = {
        "from": start.solver,
        "grid": start.grid,
        "basis": start.basis,
        "method": "levenberg-marquardt",
        "family": "whole table" if dense else "own buffers",
        "features": None if options.layers is None else options.layers.name,
        "training_seeds": len(training),
        "validation_seeds": len(validation),
        **record,
        "buffers_before": start.program.buffers,
        "buffers": program.buffers,
        "evaluations": criterion.budget.spent - spent,
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
    if not record["steps"] or not _better(criterion, start, program, held, held_out, options, record):
        return ranked, record
    record["kept"] = True
    better = replace(start, solver=program.solver, error=error, held_out_error=held, program=program)
    return [better, *ranked], record


def _better(
    criterion: ErrorCriterion,
    start: Ranked,
    program: Program,
    held: float | None,
    held_out: np.ndarray,
    options: Refining,
    record: dict[str, Any],
) -> bool:
    """Whether the refined program is better on the held-out seeds, in what it was refined for."""
    if held is None:
        return True
    if options.layers is None:
        return held < (start.held_out_error or math.inf)
    before, after = (
        _aimed(criterion, one, start.program, held_out, options.layers) for one in (start.program, program)
    )
    record |= {"held_out_loss_before": before, "held_out_loss_after": after}
    return after < before


def _aimed(criterion: ErrorCriterion, program: Program, start: Program, rows: np.ndarray, layers: Layers) -> float:
    """The loss of pixels and features on the seeds `rows`, both 1 for `start`."""
    aim = _aim(criterion, layers)
    samples = [as_tensor(criterion.pool.sample(one, rows), criterion.pool.shape) for one in (start, program)]
    aim.weigh(samples[0], as_tensor(rows))
    return float(aim.loss(samples[1], as_tensor(rows)))


def _aim(criterion: ErrorCriterion, layers: Layers | None) -> Aim:
    return Aim(as_tensor(criterion.targets, criterion.pool.shape), criterion.data_range, layers)


Found = tuple[Program, dict[str, Any]]


def _whole_table(
    criterion: ErrorCriterion,
    start: Ranked,
    training: np.ndarray,
    validation: np.ndarray,
    options: Refining,
    tell: Stages,
) -> Found:
    """Gauss-Newton over the whole table; its steps are kept in the journal."""
    program, journal = start.program, criterion.journal
    rows = metric_rows(program.nfe, criterion.budget.left(), len(training) + len(validation))
    layers = None if options.layers is None else options.layers.digest
    key = "table 1 " + content_key(program.digest, criterion.key(training), criterion.key(validation), rows, layers)

    def known(count: int) -> Step | None:
        held = journal.get(f"{key} {count}") if journal else None
        try:
            step, spent = (Step.from_data(held), int(held["evaluations"])) if held else (None, 0)
        except (KeyError, TypeError, ValueError, OverflowError):  # damaged
            return None
        criterion.budget.charge(spent, cached=True)
        return step

    def keep(count: int, step: Step, evaluations: int) -> None:
        if journal:
            journal.put(f"{key} {count}", {**step.to_data(), "evaluations": evaluations})

    def after(step: Step) -> None:
        spent = criterion.budget.spent
        line = f"refining: step {len(step.validation) - 1}, loss on validation seeds {step.validation[-1]:.4f}"
        tell(line, spent, criterion.budget.evaluations or spent)

    aim = _aim(criterion, options.layers)
    search = GaussNewton(criterion.pool, aim, criterion.budget, program, training, validation, rows)
    found = search.run(STEPS, known, keep, after)
    scale = 1.0 if not found.training or options.layers is not None else 1 / aim.pixel_weight
    record = {
        "steps": max(0, len(found.training) - 1),
        "jacobian_seeds": rows,
        "training": _roots(found.training, scale),
        "validation": _roots(found.validation, scale),
    }
    return finished(search.program_at(found), start.solver), record


def _roots(losses: tuple[float, ...], scale: float) -> list[float]:
    return [math.sqrt(loss * scale) for loss in losses]


def metric_rows(nfe: int, left: int | None, watched: int) -> int:
    """Seeds of a Jacobian, so that what is left pays for some iterations."""
    least, most = METRIC_ROWS
    if left is None:
        return most
    one = jacobian_cost(nfe) + TRIED * nfe
    return int(np.clip((left / ITERATIONS - watched * nfe) / one, least, most))


def _own_buffers(
    criterion: ErrorCriterion,
    start: Ranked,
    training: np.ndarray,
    validation: np.ndarray,
    options: Refining,
    tell: Stages,
) -> Found:
    """Levenberg-Marquardt over the updates of the buffers that the program has."""

    def after(iteration: Any) -> None:
        made, spent = len(iteration.training) - 1, criterion.budget.spent
        tell(f"refining: step {made}, validation error {iteration.validation[-1]:.4f}", spent, spent)

    found = Refinement(criterion, training, validation).run(start.program, STEPS, after)
    record = {
        "steps": max(0, len(found.training) - 1),
        "training": list(found.training),
        "validation": list(found.validation),
    }
    return finished(found.program, start.solver), record


def _error(criterion: ErrorCriterion, program: Program, rows: np.ndarray) -> float:
    return math.sqrt(criterion.square(program, rows) / len(rows))
