"""The winner of a search refined on seeds of its own, and kept only if it is better on the held-out seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch import nn

from ...engine.cache import content_key
from ...engine.compiler.program import Program
from ...engine.contract.contract import Contract
from ...engine.errors import InputError
from ...engine.progress import Stages
from ..criteria.error import ErrorCriterion
from ..perceptual.frechet import FrechetPull
from ..perceptual.layers import Layers
from ..ranking import Ranked
from ..sampling.budget import BudgetSpentError
from ..sampling.pool import Floats
from .aim import Aim, as_tensor
from .dense import fits, jacobian_cost
from .descend import Descent, Plan
from .gauss_newton import GaussNewton, Step
from .refine import Refinement, finished
from .through_module import ThroughModule

# Seeds that refining fits and watches. A few seeds carry most of the error, so it needs more than ranking does: with 32
# the MNIST network at 8 NFE came to 0.023 on the training seeds and 0.047 on others.
TRAINING, VALIDATION = 96, 32
FEWEST = 16, 8  # of these, that a small budget leaves
STEPS = 24  # at most; refining stops by itself
DESCENT_STEPS, DESCENT_BATCH = 60, 32  # of Adam, where no budget says otherwise
FOR_STEPS = 0.7  # of what is left; the Jacobian at the start and the validation seeds have the rest
PULL = 2.0  # weight of the distribution, beside 1.3 of pixels and layers
ENOUGH = 3  # samples for each feature, to tell a distribution
BATCH = 100
PERCEPTUAL = 512  # training seeds where features count
METRIC_ROWS = 2, 24  # seeds of a Jacobian, least and most
BARELY = 0.4  # of the seeds that fit a table well, which a small budget has to pay for
FIT = 8  # elements of the samples for each parameter of a table
ITERATIONS = 5  # that a budget should pay for
TRIED = 4  # runs of the Jacobian's seeds in which dampings are tried


@final
@dataclass(frozen=True)
class Refining:
    """What a refinement may do.

    training, validation: seeds of its own. buffers: of the program, None for all that a table takes, at most as many as
    a program may have. layers: None, or what is compared beside pixels. real: None, or features [n, d] of real pictures
    whose distribution the samples' should have; by default the reference's. module: None, or the network as a module
    with conditions [seeds, ...], through which gradients go.
    """

    training: int = TRAINING
    validation: int = VALIDATION
    buffers: int | None = None
    layers: Layers | None = None
    real: Floats | None = None
    module: nn.Module | None = None
    contract: Contract | None = None
    conditions: tuple[np.ndarray, ...] = ()

    @property
    def by_gradient(self) -> bool:
        """Whether gradients come through the network and the features, which is worth it for features alone."""
        return self.module is not None and self.layers is not None and self.layers.differentiable


def sized(
    calibration: int, affordable: int | None, reference: int, elements: int, nfe: int, *, perceptual: bool = False
) -> tuple[int, int]:
    """(training, validation) seeds for so many affordable evaluations, the reference being a fifth of them at most.

    Samples of few elements take more seeds, so that the table has fewer parameters than there is to fit.
    """
    training, validation = (PERCEPTUAL, PERCEPTUAL // 4) if perceptual else (TRAINING, VALIDATION)
    if affordable is not None:
        both = affordable // (5 * reference)
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
    dense = fits(start.program.nfe, options.buffers) and not start.program.noises
    if not dense and options.layers is not None:
        raise InputError(
            f"features need the whole table, which {start.program.nfe} evaluations do not fit into "
            f"{options.buffers or 'the most'} buffers; leave features out, or allow more"
        )
    spent = criterion.budget.spent
    method = _by_gradient if options.by_gradient else _whole_table if dense else _own_buffers
    if method is _whole_table and options.layers is None and criterion.budget.left() is None:
        method = _both
    judging = (calibration + 2 * len(held_out) + 2 * len(validation)) * start.program.nfe
    with criterion.budget.reserving(judging):
        program, record = method(criterion, start, training, validation, options, tell)
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
        "evaluations": criterion.budget.spent - spent,
        "held_out_before": start.held_out_error,
        "held_out_after": None,
        "kept": False,
    }
    try:
        error = _error(criterion, program, np.arange(calibration))
        better = bool(record["steps"]) and _better(criterion, start, program, held_out, options, record)
    except BudgetSpentError:
        return ranked, record
    if not better:
        return ranked, record
    record["kept"] = True
    held = record["held_out_after"]
    found = replace(start, solver=program.solver, error=error, held_out_error=held, program=program)
    return [found, *ranked], record


def _better(
    criterion: ErrorCriterion,
    start: Ranked,
    program: Program,
    held_out: np.ndarray,
    options: Refining,
    record: dict[str, Any],
) -> bool:
    """Whether the refined program is better on the held-out seeds, in what it was refined for, and not by chance.

    The record gets the held-out error, and what was compared. Validation seeds count too where chance is judged.
    """
    first = record["training_seeds"]
    rows = np.append(np.arange(first, first + record["validation_seeds"]), held_out)
    criterion.budget.charge(2 * len(rows) * program.nfe)
    samples = [criterion.pool.sample(one, rows) for one in (start.program, program)]
    squares = [criterion.squares(one, rows) for one in samples]
    judged = squares[1][len(rows) - len(held_out) :]
    record["held_out_after"] = float(np.sqrt(np.mean(judged))) if len(held_out) else None
    if options.layers is not None:
        before, after = _aimed(criterion, samples, rows, options)
        record |= {"held_out_loss_before": before, "held_out_loss_after": after}
        return after < before
    gains = squares[0] - squares[1]
    gain, doubt = float(np.mean(gains)), float(np.std(gains, ddof=1) / math.sqrt(len(rows)))
    record |= {"gain": gain, "gain_standard_error": doubt}
    after = record["held_out_after"]
    return gain > doubt and (after is None or after < (start.held_out_error or math.inf))


def _aimed(
    criterion: ErrorCriterion, samples: list[Floats], rows: np.ndarray, options: Refining
) -> tuple[float, float]:
    """The loss of two programs' samples on the seeds `rows`, each part 1 for the first."""
    aim, shape = _aim(criterion, options), criterion.pool.shape
    before, after = (as_tensor(one, shape) for one in samples)
    aim.weigh(before, as_tensor(rows))
    return aim.value(before, as_tensor(rows)), aim.value(after, as_tensor(rows))


def _aim(criterion: ErrorCriterion, options: Refining) -> Aim:
    """Pixels, layers, and the pull of a distribution where its features are enough to tell it."""
    targets, layers, real = as_tensor(criterion.targets, criterion.pool.shape), options.layers, options.real
    if layers is not None and real is None:
        with torch.no_grad():
            real = torch.cat([layers(part)[-1] for part in targets.split(BATCH)]).numpy()
    told = real is not None and len(real) > ENOUGH * real.shape[1] and options.by_gradient
    pull = FrechetPull(real.astype(np.float64)) if real is not None and told else None
    return Aim(targets, criterion.data_range, layers, pull, PULL)


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
    watched = len(training) + len(validation)
    rows = metric_rows(program.nfe, criterion.budget.left(), watched, criterion.pool.noise.shape[1])
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

    aim = _aim(criterion, options)
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


def _both(
    criterion: ErrorCriterion,
    start: Ranked,
    training: np.ndarray,
    validation: np.ndarray,
    options: Refining,
    tell: Stages,
) -> Found:
    """The program's own buffers first, on all training seeds; the whole table from there."""
    own, first = _own_buffers(criterion, start, training, validation, options, tell)
    program, record = _whole_table(criterion, replace(start, program=own), training, validation, options, tell)
    return program, {**record, "steps": first["steps"] + record["steps"], "own_buffers": first}


def _by_gradient(
    criterion: ErrorCriterion,
    start: Ranked,
    training: np.ndarray,
    validation: np.ndarray,
    options: Refining,
    tell: Stages,
) -> Found:
    """Adam through the module over the whole table; its state is kept in the journal every ten steps."""
    assert options.module is not None
    assert options.contract is not None
    assert options.layers is not None
    program, journal, budget, pool = start.program, criterion.journal, criterion.budget, criterion.pool
    aim = _aim(criterion, options)
    steps = descent_steps(program.nfe, budget.left())
    words = (program.digest, criterion.key(training), criterion.key(validation), options.layers.digest, steps)
    real = None if options.real is None else np.ascontiguousarray(options.real, np.float32)
    key = "descent 1 " + content_key(*words, *([] if real is None else [real]))

    def charge(count: int) -> None:
        budget.charge(count)
        budget.passes(count)

    def judge(one: Program) -> float:
        samples = pool.sample(one, validation, charge)
        return aim.value(as_tensor(samples, pool.shape), as_tensor(validation))

    def keep(state: Any) -> None:
        if journal:
            journal.put(key, {**state, "evaluations": budget.spent - spent})
        line = f"refining: step {state['step']} of {steps}, loss on validation seeds {state['checks'][-1]:.4f}"
        tell(line, budget.spent, budget.evaluations or budget.spent)

    spent = budget.spent
    through = ThroughModule(
        options.module,
        options.contract,
        program,
        as_tensor(pool.noise, pool.shape),
        [as_tensor(one) for one in options.conditions],
        charge,
    )
    descent = Descent(through, aim, training, judge, Plan(steps=steps, batch=DESCENT_BATCH))
    found, state = descent.run(journal.get(key) if journal else None, keep)
    record = {"steps": state.step, "validation": state.checks, "real_pictures": None if real is None else len(real)}
    return finished(found, start.solver), record


def descent_steps(nfe: int, left: int | None) -> int:
    """Steps of Adam for what is left, a step being three evaluations of each of its seeds."""
    if left is None:
        return DESCENT_STEPS
    return int(np.clip(FOR_STEPS * left / (3 * DESCENT_BATCH * nfe), 8, 2 * DESCENT_STEPS))


def _roots(losses: tuple[float, ...], scale: float) -> list[float]:
    return [math.sqrt(loss * scale) for loss in losses]


def metric_rows(nfe: int, left: int | None, watched: int, elements: int) -> int:
    """Seeds of a Jacobian, so that what is left pays for some iterations, and no fewer than determine it."""
    least, most = (max(one, seeds_to_fit(nfe, elements)) for one in METRIC_ROWS)
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
