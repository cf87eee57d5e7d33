"""The winner of a search refined on seeds of its own, and kept only if it is better on the held-out seeds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ...engine.compiler.program import MOST_BUFFERS, Program
from ...engine.errors import InputError
from ...engine.progress import Stages
from ..criteria.error import ErrorCriterion
from ..ranking import Ranked
from ..sampling.budget import BudgetSpentError
from ..sampling.pool import Floats
from .aim import as_tensor
from .by_descent import FEWEST_STEPS, adam_cost, by_module, module_steps
from .dense import entries, fits, jacobian_cost
from .gauss_newton import GaussNewton, Step
from .options import ELEMENTS, MOST_TRAINING, TRAINING, VALIDATION, Found, Refining, Task, aim_of
from .refine import Refinement, finished
from .regression import SHARE, SOLVERS, regressed, regressed_alone, usual_regression

FEWEST = 16, 8  # training and validation seeds that a small budget leaves
SURE = 1  # standard errors that a gain has to be
SURE_OF_FEW, FEW = 2, 64  # the same where fewer seeds judge
STEPS_PAID = 4  # of Gauss-Newton, below which a budget goes to regression alone
STEPS = 24  # at most; refining stops by itself
USUAL_STEPS = 7  # until then
PERCEPTUAL = 512  # training seeds where features count
METRIC_ROWS = 2, 24  # seeds of a Jacobian, least and most; without a budget as many as entries of the table
BARELY = 0.4  # of the seeds that fit a table well, which a small budget has to pay for
FIT = 8  # elements of the samples for each parameter of a table
ITERATIONS = 5  # that a budget should pay for
TRIED = 4  # runs of the Jacobian's seeds in which dampings are tried


def sized(
    calibration: int,
    affordable: int | None,
    reference: int,
    elements: int,
    nfe: int,
    *,
    perceptual: bool = False,
    whole: bool = True,
    by_gradient: bool = False,
) -> tuple[int, int]:
    """(training, validation) seeds for so many affordable evaluations, the reference being a fifth of them at most.

    Samples of few elements take more seeds, so that the table has fewer parameters than there is to fit, and by
    gradient, which costs least, so many that all have ELEMENTS together. No validation seeds where a whole table is
    fitted to pixels by regression alone, since the budget pays for little more.
    """
    training, validation = (PERCEPTUAL, PERCEPTUAL // 4) if perceptual else (TRAINING, VALIDATION)
    if by_gradient and whole and (more := min(MOST_TRAINING, ELEMENTS // elements)) > training:
        training, validation = more, more * 3 // 8
    if affordable is not None:
        both = affordable // (5 * reference)
        if whole and not perceptual and affordable < STEPS_PAID * METRIC_ROWS[1] * (jacobian_cost(nfe) + TRIED * nfe):
            return max(calibration, both // 2), 0
        training = max(FEWEST[0], min(training, both * 3 // 4))
        validation = max(FEWEST[1], min(validation, training // 3))
    needed = seeds_to_fit(nfe, elements)
    if affordable is not None:
        needed = min(needed, max(math.ceil(BARELY * needed), affordable // (3 * reference)))
    return max(training, calibration, needed), validation


def seeds_to_fit(nfe: int, elements: int) -> int:
    """The fewest seeds whose elements are FIT times the parameters of a whole table."""
    parameters = (nfe + 1) * (nfe + 2) // 2 + nfe
    return math.ceil(FIT * parameters / elements)


def usual_cost(options: Refining, nfe: int, elements: int) -> int:
    """Evaluations of a refinement that no budget bounds, about."""
    watched = options.training + options.validation
    if not fits(nfe, options.buffers):
        columns = 2 * (options.buffers or MOST_BUFFERS) + 1  # of each update, and each runs what follows it
        return USUAL_STEPS * options.training * columns * nfe * (nfe + 1) // 2
    regression = usual_regression(nfe, options.training)
    if options.by_gradient:
        return regression + adam_cost(nfe, options) + 6 * nfe * options.validation
    rows = metric_rows(nfe, None, watched, elements)
    return regression + USUAL_STEPS * (rows * (jacobian_cost(nfe) + TRIED * nfe) + nfe * watched)


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
    if start.program.keeps_eps:
        raise InputError(f"{start.program.solver} takes the network's output twice and is not refined; search ddim too")
    first = options.training
    training, validation = np.arange(first), np.arange(first, first + options.validation)
    judges = np.append(validation, held_out)
    if not len(held_out):
        validation, judges = np.split(validation, [len(validation) // 2])
    dense = fits(start.program.nfe, options.buffers) and not start.program.noises
    if not dense and options.layers is not None:
        raise InputError(
            f"features need the whole table, which {start.program.nfe} evaluations do not fit into "
            f"{options.buffers or 'the most'} buffers; leave features out, or allow more"
        )
    spent, nfe = criterion.budget.spent, start.program.nfe
    task = Task(criterion, start, training, validation, options, tell)
    alone = dense and not options.validation
    judging = (calibration + 2 * len(judges)) * nfe
    with criterion.budget.reserving(judging):
        method, programs, made = _alone(task, ranked) if alone else _trained(task, ranked, dense=dense)
    record = {
        "from": start.solver,
        "grid": start.grid,
        "basis": start.basis,
        "method": method,
        "family": "whole table" if dense else "own buffers",
        "features": None if options.layers is None else options.layers.name,
        "training_seeds": len(training),
        "validation_seeds": len(validation),
        "judging_seeds": len(judges),
        **made,
        "buffers_before": start.program.buffers,
        "buffers": programs[0].buffers if programs else start.program.buffers,
        "evaluations": criterion.budget.spent - spent,
        "held_out_before": start.held_out_error,
        "held_out_after": None,
        "kept": False,
    }
    try:
        program = _best(criterion, start, programs, judges, held_out, options, record)
        error = None if program is None else _error(criterion, program, np.arange(calibration))
    except BudgetSpentError:
        return ranked, record
    if program is None or error is None:
        return ranked, record
    record |= {"kept": True, "buffers": program.buffers}
    held = record["held_out_after"]
    found = replace(start, solver=program.solver, error=error, held_out_error=held, program=program)
    return [found, *ranked], record


def _alone(task: Task, ranked: list[Ranked]) -> tuple[str, list[Program], dict[str, Any]]:
    """Regression alone, for a budget that pays for no more."""
    found = regressed_alone(task, _others(ranked))
    return "regression", [finished(one, task.start.solver) for one in found], {"steps": 0, "regression": None}


def _trained(task: Task, ranked: list[Ranked], *, dense: bool) -> tuple[str, list[Program], dict[str, Any]]:
    """Regression and what comes after it, or a method for few buffers."""
    budget, regression = task.criterion.budget, None
    if dense:
        with budget.reserving(int((1 - SHARE) * (budget.left() or 0))):
            task, regression = regressed(task, _others(ranked))
    method = _method(task) if dense else "own buffers"
    program, record = METHODS[method](task)
    changed = bool(record["steps"]) or bool(regression and regression["kept"])
    return method, [program] if changed else [], {**record, "regression": regression}


def _best(
    criterion: ErrorCriterion,
    start: Ranked,
    programs: list[Program],
    judges: np.ndarray,
    held_out: np.ndarray,
    options: Refining,
    record: dict[str, Any],
) -> Program | None:
    """The one that is best on the held-out seeds, and better than the start; its errors go into the record."""
    best, errors = None, {}
    samples = [criterion.samples(one, judges) for one in (start.program, *programs)] if programs else []
    for program, after in zip(programs, samples[1:], strict=True):
        found: dict[str, Any] = {}
        better = _better(criterion, start, (samples[0], after), judges, held_out, options, found)
        if better and (best is None or found["held_out_after"] < errors["held_out_after"]):
            best, errors = program, found
        errors = errors or found
    record |= errors
    return best


def _others(ranked: list[Ranked]) -> list[Program]:
    """The best of each other solver."""
    first: dict[str, Program] = {}
    for one in ranked:
        first.setdefault(one.solver, one.program)
    return list(first.values())[1:SOLVERS]


def _better(
    criterion: ErrorCriterion,
    start: Ranked,
    samples: tuple[Floats, Floats],
    rows: np.ndarray,
    held_out: np.ndarray,
    options: Refining,
    record: dict[str, Any],
) -> bool:
    """Whether the refined program is better on the seeds `rows`, in what it was refined for, and not by chance.

    samples: of the start and of the refined program. rows: the validation and the held-out seeds, these last; where
    there are none, validation seeds that no step has watched. The record gets the held-out error and what was compared.
    """
    squares = [criterion.squares(one, rows) for one in samples]
    judged = squares[1][len(rows) - len(held_out) :]
    record["held_out_after"] = float(np.sqrt(np.mean(judged))) if len(held_out) else None
    if options.layers is not None:
        before, after = _aimed(criterion, samples, rows, options)
        record |= {"held_out_loss_before": before, "held_out_loss_after": after}
        return after < before
    gains = squares[0] - squares[1]
    doubt = float(np.std(gains, ddof=1) / math.sqrt(len(rows))) if len(rows) > 1 else math.inf
    gain = float(np.mean(gains))
    record |= {"gain": gain, "gain_standard_error": doubt}
    after = record["held_out_after"]
    sure = SURE_OF_FEW if len(rows) < FEW else SURE
    before = math.inf if start.held_out_error is None else start.held_out_error
    return gain > sure * doubt and (after is None or after < before)


def _aimed(
    criterion: ErrorCriterion, samples: tuple[Floats, Floats], rows: np.ndarray, options: Refining
) -> tuple[float, float]:
    """The loss of two programs' samples on the seeds `rows`, each part 1 for the first."""
    aim, shape = aim_of(criterion, options), criterion.pool.shape
    before, after = (as_tensor(one, shape) for one in samples)
    aim.weigh(before, as_tensor(rows))
    return aim.value(before, as_tensor(rows)), aim.value(after, as_tensor(rows))


def _method(task: Task) -> str:
    """Of METHODS, for the whole table. Few evaluations gain most by Gauss-Newton, many gradients by Adam."""
    many = task.options.layers is not None or module_steps(task) >= FEWEST_STEPS
    return "adam" if task.options.by_gradient and many else "levenberg-marquardt"


def _whole_table(task: Task) -> Found:
    """Gauss-Newton over the whole table; its steps are kept in the journal."""
    criterion, training, validation = task.criterion, task.training, task.validation
    program, journal = task.start.program, criterion.journal
    watched = len(training) + len(validation)
    rows = metric_rows(program.nfe, criterion.budget.left(), watched, criterion.pool.noise.shape[1])
    key = f"table 3 {task.key(rows)}"

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
        task.tell(line, spent, criterion.budget.evaluations or spent)

    aim = aim_of(criterion, task.options)
    search = GaussNewton(criterion.pool, aim, criterion.budget, program, training, validation, rows)
    found = search.run(STEPS, known, keep, after)
    scale = 1.0 if not found.training or task.options.layers is not None else 1 / aim.pixel_weight
    record = {
        "steps": max(0, len(found.training) - 1),
        "jacobian_seeds": rows,
        "training": _roots(found.training, scale),
        "validation": _roots(found.validation, scale),
    }
    return finished(search.program_at(found), task.start.solver), record


def _roots(losses: tuple[float, ...], scale: float) -> list[float]:
    return [math.sqrt(loss * scale) for loss in losses]


def metric_rows(nfe: int, left: int | None, watched: int, elements: int) -> int:
    """Seeds of a Jacobian, so that what is left pays for some iterations, and no fewer than determine it."""
    least, most = (max(one, seeds_to_fit(nfe, elements)) for one in METRIC_ROWS)
    if left is None:
        return max(most, len(entries(nfe)))
    one = jacobian_cost(nfe) + TRIED * nfe
    return int(np.clip((left / ITERATIONS - watched * nfe) / one, least, most))


def _own_buffers(task: Task) -> Found:
    """Levenberg-Marquardt over the updates of the buffers that the program has."""
    criterion = task.criterion

    def after(iteration: Any) -> None:
        made, spent = len(iteration.training) - 1, criterion.budget.spent
        task.tell(f"refining: step {made}, validation error {iteration.validation[-1]:.4f}", spent, spent)

    found = Refinement(criterion, task.training, task.validation).run(task.start.program, STEPS, after)
    record = {
        "steps": max(0, len(found.training) - 1),
        "training": list(found.training),
        "validation": list(found.validation),
    }
    return finished(found.program, task.start.solver), record


METHODS = {
    "adam": by_module,
    "levenberg-marquardt": _whole_table,
    "own buffers": _own_buffers,
}


def _error(criterion: ErrorCriterion, program: Program, rows: np.ndarray) -> float:
    return math.sqrt(criterion.square(program, rows) / len(rows))
