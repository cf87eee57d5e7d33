"""The program of a network for one NFE: what the caller gave, what its diffusers scheduler says, and the rule.

| left open   | without a scheduler                      | with a diffusers scheduler                               |
|-------------|------------------------------------------|----------------------------------------------------------|
| solver      | the rule's                               | its own step where it draws noise, else ipndm:order=2    |
| grid        | the rule's                               | trailing for evenly spaced times, Karras sigmas as theirs |
| t_start     | the rule's, or `default_start` of a grid | the same                                                 |
| basis       | the solver's                             | the scheduler's, but for that solver                     |
| clip, end   | none, clean                              | the scheduler's                                          |

The rule is engine/compiler/defaults.py. Grid "diffusers" is the scheduler's times exactly, those of its own class, and
with DDIM's class and clip_sample `ddim` then is its step exactly: `ddim:eps=own`.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...engine.compiler.compile import compile as compile_program
from ...engine.compiler.defaults import AUTO, BASIS, SOLVER, Choice, filled, open_grid
from ...engine.compiler.program import Program
from ...engine.compiler.schedule import parse_schedule
from ...engine.compiler.solvers import parse_solver
from ...engine.compiler.solvers.ddim import OWN
from ...engine.compiler.start import doubt_of_clean_start
from ...engine.errors import InputError, shown
from .x0_variance import with_variances

if TYPE_CHECKING:
    from ...engine.compiler.grid import Grid
    from ..convention import Convention
    from ..network import Network

EXACT = "diffusers"  # the grid that is a scheduler's own times
LATE = "leading"  # the rule that begins below the start it is given
TUNE_EVALUATIONS = 25_000  # that `tune` takes with its defaults for one NFE, the reference included


def chosen_program(source: Network, solver: str, nfe: int, settings: Mapping[str, Any]) -> Program:
    """The program of `nfe` evaluations; settings: grid, basis, clip, t_start and end, each None where left open.

    Raises InputError.
    """
    contract = source.contract
    choice, given = chosen(source, solver, nfe, settings)
    choice = with_variances(source, choice, nfe, given)
    program = compile_program(
        choice.solver,
        contract.schedule,
        nfe,
        choice.grid,
        choice.basis,
        contract.prediction,
        given["clip"],
        choice.t_start,
        "clean" if given["end"] is None else given["end"],
        contract.sigma_data,
    )
    contract.feed_times(program.network_times)
    if doubt := doubt_of_clean_start(program):
        warnings.warn(doubt, stacklevel=3)
    return program


def chosen(source: Network, solver: str, nfe: int, settings: Mapping[str, Any]) -> tuple[Choice, dict[str, Any]]:
    """The sampler of `chosen_program`, and its settings with the scheduler's in place of None. Raises InputError."""
    contract, convention = source.contract, source.convention
    given = dict(settings)
    if convention is not None:
        stored = BASIS if solver == AUTO and convention.solver is None else convention.basis
        own = {"basis": stored, "clip": convention.clip, "end": convention.end}
        given |= {key: value for key, value in own.items() if given[key] is None}
        taken = solver == AUTO and convention.solver is not None
        solver = (convention.solver or SOLVER) if solver == AUTO else solver
        if given["grid"] is None:
            given["grid"] = (None if taken else few_step_grid(convention)) or EXACT
    if is_exact(given["grid"]):
        return _exact(source, solver, nfe, given), given
    left_open = given["grid"], given["basis"], given["t_start"]
    words = {"schedule": contract.schedule, "prediction": contract.prediction, "clip": given["clip"]}
    return filled(solver, *left_open, **words, nfe=nfe), given


def few_step_grid(convention: Convention) -> str | None:
    """The rule that few-step samplers take for a scheduler; None where its own times are to be kept.

    Those are Karras and exponential sigmas of flow networks, and times that are stretched to a last one.
    """
    kept = convention.ramp is not None or convention.shift_terminal
    return None if kept else open_grid(convention.grid)


def is_exact(grid: Grid | None) -> bool:
    """Whether the scheduler's own times are asked for."""
    return isinstance(grid, str) and grid == EXACT


def _exact(source: Network, solver: str, nfe: int, given: Mapping[str, Any]) -> Choice:
    """The times of the scheduler; with a start of the caller's own the nearest rule has to do."""
    convention, t_start = source.convention, given["t_start"]
    if convention is None:
        raise InputError(f"grid 'diffusers': network '{source.contract.name}' has no scheduler; give a rule: trailing")
    if solver == "ddim" and convention.keeps_eps and given["clip"] is not None:
        solver = f"ddim:eps={OWN}"
    if t_start is not None:
        rule = convention.grid.partition(":")[0]
        return Choice(solver, "trailing" if rule == LATE else convention.grid, given["basis"], t_start)
    return Choice(solver, _ending(convention, given["end"]).walk(parse_solver(solver), nfe), given["basis"])


def _ending(convention: Convention, end: str | float) -> Convention:
    """With times that end there. Raises InputError for a time between the least noisy one and the others."""
    process = parse_schedule(convention.schedule)
    named = {process.clean: "clean", process.first: "first"}.get(end, end) if isinstance(end, float | int) else end
    if convention.spacing == "rule" or named == convention.end:
        return convention
    if named not in ("clean", "first"):
        raise InputError(f"end {shown(end)}: the times of grid '{EXACT}' end at clean or first; give a rule: trailing")
    return replace(convention, end=str(named))


def is_open(source: Network, solver: str, settings: Mapping[str, Any]) -> bool:
    """Whether the sampler is left to us altogether."""
    left = (settings[name] is None for name in ("grid", "basis", "t_start"))
    return solver == AUTO and source.convention is None and all(left)


def described_choice(
    programs: Collection[Program],
    source: Network,
    solver: str,
    settings: Mapping[str, Any],
    records: Mapping[int, Any] | None = None,
) -> str:
    """One line: the samplers, how they were chosen, and what `tune` would cost. records: of `measured_choice`, now."""
    ways: dict[str, list[str]] = {}
    found = records or {}
    seconds = max((one.get("seconds", 0.0) for one in found.values()), default=0.0)  # one measurement, of all NFE
    for one in programs:
        how = "as given" if solver != AUTO and settings["grid"] is not None else _way(found.get(one.nfe), seconds)
        ways.setdefault(how, []).append(f"NFE {one.nfe} {one.solver} on {_named(one.grid)} in {one.basis}")
    names = "; ".join(f"{how}: {', '.join(of)}" for how, of in ways.items())
    if solver != AUTO and settings["grid"] is not None:
        return f"sampler {names}"
    if any(one.noises for one in programs):  # the error to a reference, which `tune` lowers, has no meaning then
        return f"sampler {names}"
    exact = ""
    convention = source.convention
    has_own = convention is not None and convention.spacing != "rule" and few_step_grid(convention)
    if has_own and settings["grid"] is None:
        exact = f" (grid {EXACT} keeps the scheduler's own times)"
    return (
        f"sampler {names}{exact}; pfdiff tune may find a better one in about "
        f"{TUNE_EVALUATIONS:,} evaluations for each NFE"
    )


def _way(record: Mapping[str, Any] | None, seconds: float) -> str:
    """How the sampler of one NFE was chosen; seconds: of the measurement in all."""
    if record is None:
        return "by rule"
    if not record["complete"]:
        return "by rule, as the time did not pay for a measurement"
    if record.get("remembered"):
        return "by measurement, when this engine was built"
    return f"by measurement ({record['calls']} calls, {record['calibration_seeds']} seeds, {seconds:.1f} s)"


def _named(grid: str | tuple[float, ...]) -> str:
    return grid if isinstance(grid, str) else f"{len(grid)} given times"
