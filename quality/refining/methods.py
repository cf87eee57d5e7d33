"""How a program is refined: its own buffers, its whole table by Gauss-Newton, or the table by Adam through a module."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch

from ...engine.cache import content_key
from ...engine.compiler.program import Program
from ...engine.progress import Stages
from ..criteria.error import ErrorCriterion
from ..perceptual.frechet import FrechetPull
from ..ranking import Ranked
from .aim import Aim, as_tensor
from .dense import jacobian_cost
from .descend import Descent, Plan
from .gauss_newton import GaussNewton, Step
from .options import Refining, seeds_to_fit
from .refine import Refinement, finished
from .through_module import ThroughModule

STEPS = 24  # at most; refining stops by itself
DESCENT_STEPS, DESCENT_BATCH = 60, 32  # of Adam, where no budget says otherwise
FOR_STEPS = 0.7  # of what is left; the Jacobian at the start and the validation seeds have the rest
PULL = 2.0  # weight of the distribution, beside 1.3 of pixels and layers
ENOUGH = 3  # samples for each feature, to tell a distribution
BATCH = 100
METRIC_ROWS = 2, 24  # seeds of a Jacobian, least and most
ITERATIONS = 5  # that a budget should pay for
TRIED = 4  # runs of the Jacobian's seeds in which dampings are tried


@final
@dataclass(frozen=True)
class Task:
    """A program to be refined: by what criterion, on which rows of its pool, within which options."""

    criterion: ErrorCriterion
    start: Ranked
    training: np.ndarray
    validation: np.ndarray
    options: Refining
    tell: Stages

    def aim(self) -> Aim:
        """Pixels, layers, and the pull of a distribution where its features are enough to tell it."""
        options, pool = self.options, self.criterion.pool
        targets, layers, real = as_tensor(self.criterion.targets, pool.shape), options.layers, options.real
        if layers is not None and real is None:
            with torch.no_grad():
                real = torch.cat([layers(part)[-1] for part in targets.split(BATCH)]).numpy()
        told = real is not None and len(real) > ENOUGH * real.shape[1] and options.by_gradient
        pull = FrechetPull(real.astype(np.float64)) if real is not None and told else None
        return Aim(targets, self.criterion.data_range, layers, pull, PULL)

    def key(self, method: str, *further: Any) -> str:
        """The name of the method's work on this program and these seeds in the journal."""
        seeds = (self.criterion.key(self.training), self.criterion.key(self.validation))
        return f"{method} " + content_key(self.start.program.digest, *seeds, *further)


Found = tuple[Program, dict[str, Any]]


def own_buffers(task: Task) -> Found:
    """Levenberg-Marquardt over the updates of the buffers that the program has."""

    def after(iteration: Any) -> None:
        made, spent = len(iteration.training) - 1, task.criterion.budget.spent
        task.tell(f"refining: step {made}, validation error {iteration.validation[-1]:.4f}", spent, spent)

    found = Refinement(task.criterion, task.training, task.validation).run(task.start.program, STEPS, after)
    record = {
        "steps": max(0, len(found.training) - 1),
        "training": list(found.training),
        "validation": list(found.validation),
    }
    return finished(found.program, task.start.solver), record


def whole_table(task: Task) -> Found:
    """Gauss-Newton over the whole table; its steps are kept in the journal."""
    criterion, options = task.criterion, task.options
    program, journal = task.start.program, criterion.journal
    watched = len(task.training) + len(task.validation)
    rows = metric_rows(program.nfe, criterion.budget.left(), watched, criterion.pool.noise.shape[1])
    key = task.key("table 1", rows, None if options.layers is None else options.layers.digest)

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

    aim = task.aim()
    search = GaussNewton(criterion.pool, aim, criterion.budget, program, task.training, task.validation, rows)
    found = search.run(STEPS, known, keep, after)
    scale = 1.0 if not found.training or options.layers is not None else 1 / aim.pixel_weight
    record = {
        "steps": max(0, len(found.training) - 1),
        "jacobian_seeds": rows,
        "training": _roots(found.training, scale),
        "validation": _roots(found.validation, scale),
    }
    return finished(search.program_at(found), task.start.solver), record


def both(task: Task) -> Found:
    """The program's own buffers first, on all training seeds; the whole table from there."""
    own, first = own_buffers(task)
    program, record = whole_table(replace(task, start=replace(task.start, program=own)))
    return program, {**record, "steps": first["steps"] + record["steps"], "own_buffers": first}


def by_gradient(task: Task) -> Found:
    """Adam through the module over the whole table; its state is kept in the journal every ten steps."""
    options = task.options
    assert options.module is not None
    assert options.contract is not None
    assert options.layers is not None
    program, journal = task.start.program, task.criterion.journal
    aim, budget, pool = task.aim(), task.criterion.budget, task.criterion.pool
    steps = descent_steps(program.nfe, budget.left())
    real = None if options.real is None else np.ascontiguousarray(options.real, np.float32)
    key = task.key("descent 1", options.layers.digest, steps, *([] if real is None else [real]))

    def charge(count: int) -> None:
        budget.charge(count)
        budget.passes(count)

    def judge(one: Program) -> float:
        samples = pool.sample(one, task.validation, charge)
        return aim.value(as_tensor(samples, pool.shape), as_tensor(task.validation))

    def keep(state: Any) -> None:
        if journal:
            journal.put(key, {**state, "evaluations": budget.spent - spent})
        line = f"refining: step {state['step']} of {steps}, loss on validation seeds {state['checks'][-1]:.4f}"
        task.tell(line, budget.spent, budget.evaluations or budget.spent)

    spent = budget.spent
    noise, conditions = as_tensor(pool.noise, pool.shape), [as_tensor(one) for one in options.conditions]
    through = ThroughModule(options.module, options.contract, program, noise, conditions, charge)
    descent = Descent(through, aim, task.training, judge, Plan(steps=steps, batch=DESCENT_BATCH))
    found, state = descent.run(journal.get(key) if journal else None, keep)
    record = {"steps": state.step, "validation": state.checks, "real_pictures": None if real is None else len(real)}
    return finished(found, task.start.solver), record


def descent_steps(nfe: int, left: int | None) -> int:
    """Steps of Adam for what is left, a step being three evaluations of each of its seeds."""
    if left is None:
        return DESCENT_STEPS
    return int(np.clip(FOR_STEPS * left / (3 * DESCENT_BATCH * nfe), 8, 2 * DESCENT_STEPS))


def metric_rows(nfe: int, left: int | None, watched: int, elements: int) -> int:
    """Seeds of a Jacobian, so that what is left pays for some iterations, and no fewer than determine it."""
    least, most = (max(one, seeds_to_fit(nfe, elements)) for one in METRIC_ROWS)
    if left is None:
        return most
    one = jacobian_cost(nfe) + TRIED * nfe
    return int(np.clip((left / ITERATIONS - watched * nfe) / one, least, most))


def _roots(losses: tuple[float, ...], scale: float) -> list[float]:
    return [math.sqrt(loss * scale) for loss in losses]
