"""Adam over the whole table, gradients through the network's module."""

from __future__ import annotations

from typing import Any

from ...engine.compiler.program import Program
from .aim import as_tensor
from .descend import Descent, Plan
from .options import Found, Refining, Task, aim_of
from .refine import finished
from .through_module import ThroughModule

STEPS = 80  # where no budget says otherwise
BATCH, OF_TRAINING = 32, 8  # seeds of a step: so many at least, else an eighth of the training seeds
FEWEST_STEPS = 20  # below which Gauss-Newton gains more from the same evaluations
FOR_STEPS = 0.7  # of what is left; the Jacobian at the start and the validation seeds have the rest


def by_module(task: Task) -> Found:
    """Gradients by backpropagation; the state is kept in the journal every ten steps."""
    options, budget = task.options, task.criterion.budget
    assert options.module is not None
    assert options.contract is not None

    def charge(count: int) -> None:
        budget.charge(count)
        budget.passes(count)

    through = ThroughModule(
        options.module,
        options.contract,
        task.start.program,
        as_tensor(task.criterion.pool.noise, task.criterion.pool.shape),
        [as_tensor(one) for one in options.conditions],
        charge,
    )
    return _descended(task, through, module_steps(task))


def module_steps(task: Task) -> int:
    """Steps that the budget pays for, a way back counting as two evaluations."""
    left, cost = task.criterion.budget.left(), adam_cost(task.start.program.nfe, task.options)
    return STEPS if left is None else int(min(FOR_STEPS * left * STEPS / cost, 2 * STEPS))


def adam_cost(nfe: int, options: Refining) -> int:
    """Evaluations of STEPS steps."""
    return 3 * STEPS * batch_of(options) * nfe


def batch_of(options: Refining) -> int:
    """Seeds of a step: the rare ones that carry much of the error in pixels should be in most batches."""
    return BATCH if options.layers is not None else max(BATCH, options.training // OF_TRAINING)


def _descended(task: Task, through: ThroughModule, steps: int) -> Found:
    criterion, options = task.criterion, task.options
    journal, budget, pool, validation = criterion.journal, criterion.budget, criterion.pool, task.validation
    aim, steps = aim_of(criterion, options), max(steps, 8)
    key = f"descent 5 {task.key(steps)}"
    spent = budget.spent

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
        task.tell(line, budget.spent, budget.evaluations or budget.spent)

    batch = batch_of(options)
    plan = Plan(steps=steps, batch=batch, metric_seeds=batch * 3 // 4)
    descent = Descent(through, aim, task.training, judge, plan)
    found, state = descent.run(journal.get(key) if journal else None, keep)
    real = options.real
    record = {"steps": state.step, "validation": state.checks, "real_pictures": None if real is None else len(real)}
    return finished(found, task.start.solver), record
