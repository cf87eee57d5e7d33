"""What the search chooses from: solvers, grids, bases, start times, and the neighbours of a good choice.

Three tables and one product. What is not defined for a schedule, an NFE or a basis refuses to compile and drops out;
programs that differ in name only (DDIM is the same in every basis, integer grids coincide) are found by running them
on a made-up network, and one of each is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from ...engine.artifact import read_artifact
from ...engine.compiler.basis import BASES
from ...engine.compiler.compile import compile
from ...engine.compiler.defaults import AUTO, Choice, filled
from ...engine.compiler.grid import Grid, listed, make_grid
from ...engine.compiler.program import Program
from ...engine.compiler.schedule import Schedule, parse_schedule
from ...engine.compiler.solvers import parse_solver
from ...engine.compiler.solvers.stochastic.analytic import Analytic
from ...engine.compiler.start import default_start
from ...engine.errors import InputError
from ...export.choice.sampler_choice import EXACT, chosen, is_exact
from ...export.network import Network
from ..sampling.pool import stochastic_refused
from ..sampling.subject import Subject

SOLVERS = (
    "ddim",
    "dpm-solver:order=2",
    "dpm-solver:order=3",
    "dpm++:2s",
    "dpm++:3s",
    "dpm++:2m",
    "dpm++:3m",
    "deis:order=2",
    "deis:order=3",
    "deis:order=4",
    "ipndm:order=2",
    "ipndm:order=3",
    "ipndm:order=4",
    "unipc:order=2",
    "unipc:order=3",
    "heun",
    "pfdiff:k=1,l=1",
    "pfdiff:k=2,l=1",
    "pfdiff:k=2,l=2",
    "pfdiff:k=3,l=1",
    "pfdiff:k=3,l=2",
    "pfdiff:k=3,l=3",
    "pfdiff:k=1,l=1,base=dpm++2s",
    "pfdiff:k=2,l=1,base=dpm++2s",
    "pfdiff:k=1,l=1,base=dpm-solver-2",
    "pfdiff:k=2,l=1,base=dpm-solver-2",
)
STOCHASTIC = (  # of distances alone
    "euler-a",
    "dpm++:2m-sde",
    "sa:predictor=2,corrector=2,tau=1",
    "sa:predictor=2,corrector=2,tau=0.5",
    "tada:order=2",
)
FRACTIONAL = ("pfdiff:k=1,l=0.5", "pfdiff:k=2,l=0.5", "pfdiff:k=2,l=1.5", "pfdiff:k=3,l=1.5")  # continuous schedules
GRIDS = (
    "uniform",
    "trailing",
    "quadratic",
    "quadratic:fraction=1",
    "logsnr",
    "karras",
    "karras:rho=3",
    "angle",
    "angle:power=1.5",
    "beta",
    "ays_sd",
    "ays_sdxl",
)
# Where neighbours look, as factors and steps of the parameter.
RHO_FACTORS = (0.6, 0.8, 1.25, 1.6)
FRACTION_STEPS = (-0.15, -0.08, 0.08, 0.15)
POWER_STEPS = (-0.25, 0.25, 0.5)
L_STEPS = (-0.5, -0.25, 0.25, 0.5)
START_PARTS = (0.01, 0.02, 0.04, 0.08, 0.13, 0.2)  # of the span, below the latest start


@final
@dataclass(frozen=True)
class Setting:
    """What stays the same for all candidates; `t_start` is the latest start, where the reference starts too."""

    schedule: str
    nfe: int
    prediction: str
    t_start: float
    clip: float | None = None
    end: str | float = "clean"
    sigma_data: float = 0.5
    draws: bool = False  # candidates may draw noise on the way: for distances, not for errors
    network: Network | None = None  # with a diffusers scheduler, which the default sampler then follows
    latest: float | None = None  # the caller's latest start, above which the scheduler's own times may not be either


def make_setting(
    subject: Subject, nfe: int, clip: float | None, t_start: float | None, end: str | float | None
) -> Setting:
    """What all candidates share; clip and end are by default the subject's own.

    Raises InputError on what does not fit the network's schedule.
    """
    contract = subject.contract
    own_clip, own_end = _own(subject)
    clip, end = own_clip if clip is None else clip, own_end if end is None else end
    process = parse_schedule(contract.schedule)
    start = default_start(contract.schedule, contract.prediction, clip) if t_start is None else float(t_start)
    process.alpha(start)
    if isinstance(nfe, bool) or not isinstance(nfe, int) or nfe < 1:
        raise InputError(f"nfe={nfe!r}, expected an integer of at least 1")
    scheduled = subject.network if subject.network and subject.network.convention else None
    words = (contract.schedule, nfe, contract.prediction, start, clip, end, contract.sigma_data)
    return Setting(*words, network=scheduled, latest=None if t_start is None else start)


def _own(subject: Subject) -> tuple[float | None, str | float]:
    """(clip, end) of the network's scheduler, or what an engine's programs agree on; else no clip, and clean."""
    if subject.engine is not None:
        programs = read_artifact(subject.engine, verify=False).programs.values()
        clips, ends = {one.clip for one in programs}, {one.end for one in programs}
        return clips.pop() if len(clips) == 1 else None, ends.pop() if len(ends) == 1 else "clean"
    convention = subject.network and subject.network.convention
    return (convention.clip, convention.end) if convention else (None, "clean")


@final
@dataclass(frozen=True)
class Candidate:
    """One choice: a sampler but for its setting."""

    solver: str
    grid: str | tuple[float, ...]
    basis: str | None
    t_start: float | None

    def compile(self, setting: Setting) -> Program:
        """Its program. Raises InputError where the choice is not defined."""
        return compile(
            self.solver,
            setting.schedule,
            setting.nfe,
            self.grid,
            self.basis,
            setting.prediction,
            setting.clip,
            self.t_start,
            setting.end,
            setting.sigma_data,
        )


def all_candidates(
    setting: Setting,
    *,
    solvers: Sequence[str] | None = None,
    grids: Sequence[Grid] | None = None,
    bases: Sequence[str] | None = None,
) -> Iterator[Candidate]:
    """The default sampler, then every solver on every grid in every basis, from the latest start.

    With a list of solvers, grids or bases only these. Raises InputError on a list of no numbers.
    """
    process = parse_schedule(setting.schedule)
    if solvers is grids is bases is None:
        yield default_candidate(setting)
    known = solvers or SOLVERS + (() if process.discrete else FRACTIONAL) + (STOCHASTIC if setting.draws else ())
    for solver in known:
        free = solvers is not None or _parameterisation(solver) is None
        for grid in grids or GRIDS:
            for basis in bases or (BASES if free else (None,)):
                if is_exact(grid):
                    with contextlib.suppress(InputError):
                        yield by_default(Candidate(solver, EXACT, basis, None), setting)
                    continue
                times = grid if isinstance(grid, str) else tuple(grid)
                yield Candidate(solver, times, basis, start_of(grid, setting.t_start))


def by_default(candidate: Candidate, setting: Setting) -> Candidate:
    """With solver and grid "auto" replaced by those that `build` takes, and their start; never above the latest.

    Raises InputError.
    """
    grid = None if candidate.grid == AUTO else candidate.grid
    choice = _by_rule(candidate, grid, setting) if setting.network is None else _by_scheduler(candidate, grid, setting)
    start = setting.t_start if choice.t_start is None else min(choice.t_start, setting.t_start)
    return Candidate(choice.solver, choice.grid, choice.basis, start_of(choice.grid, start))


def _by_rule(candidate: Candidate, grid: Grid | None, setting: Setting) -> Choice:
    words = {"schedule": setting.schedule, "prediction": setting.prediction, "nfe": setting.nfe}
    return filled(candidate.solver, grid, candidate.basis, None if grid is None else setting.t_start, **words)


def _by_scheduler(candidate: Candidate, grid: Grid | None, setting: Setting) -> Choice:
    """From the caller's latest start where the scheduler's own is above it."""
    assert setting.network is not None
    given: dict[str, Any] = {"grid": grid, "basis": candidate.basis, "t_start": None}
    given |= {"clip": setting.clip, "end": setting.end}
    words = (setting.network, candidate.solver, setting.nfe)
    if setting.latest is None:
        return chosen(*words, given)[0]
    with contextlib.suppress(InputError):  # so many of its own times there may not be
        choice, _ = chosen(*words, given)
        if start_of(choice.grid, setting.t_start if choice.t_start is None else choice.t_start) <= setting.latest:
            return choice
    return chosen(*words, {**given, "t_start": setting.latest})[0]


def default_candidate(setting: Setting) -> Candidate:
    """The default sampler; the rule's where the scheduler's is not defined, or draws noise and candidates may not.

    Raises InputError.
    """
    usual = Candidate(AUTO, AUTO, None, None)
    if setting.network is None:
        return by_default(usual, setting)
    with contextlib.suppress(InputError):
        found = by_default(usual, setting)
        if not found.compile(setting).noises or setting.draws:
            return found
    return by_default(usual, replace(setting, network=None))


def start_of(grid: Grid, t_start: float) -> float:
    """Where a grid starts: a rule at `t_start`, a list at its own first time. Raises InputError."""
    times = listed(grid)
    return t_start if times is None or not len(times) else float(times[0])


def neighbours(candidate: Candidate, setting: Setting) -> Iterator[Candidate]:
    """Choices near a good one: other grid parameters, starts, (k, l), orders, bases."""
    process = parse_schedule(setting.schedule)
    yield from _near_grids(candidate)
    yield from _near_starts(candidate, setting, process)
    yield from (replace(candidate, solver=solver) for solver in _near_solvers(candidate.solver, process))
    yield from (replace(candidate, basis=basis) for basis in BASES if basis != candidate.basis)


def _near_grids(candidate: Candidate) -> Iterator[Candidate]:
    if not isinstance(candidate.grid, str):
        return
    name, _, query = candidate.grid.partition(":")
    value = (
        float(query.partition("=")[2]) if query.count("=") == 1 else {"karras": 7.0, "quadratic": 0.8}.get(name, 0.0)
    )
    if name == "karras":
        yield from (replace(candidate, grid=f"karras:rho={value * factor:.3g}") for factor in RHO_FACTORS)
    elif name == "quadratic":
        for step in FRACTION_STEPS:
            if 0.3 <= value + step <= 1:
                yield replace(candidate, grid=f"quadratic:fraction={value + step:.3g}")
    elif name == "angle" and "scale" not in query:
        for step in POWER_STEPS:
            yield replace(candidate, grid=f"angle:power={(value or 1) + step:g}")
    elif name == "logsnr":  # the limit of karras for large rho
        yield from (replace(candidate, grid=f"karras:rho={rho}") for rho in (12, 20))


def _near_starts(candidate: Candidate, setting: Setting, process: Schedule) -> Iterator[Candidate]:
    """Lower starts, and the latest."""
    first, last = process.first, setting.t_start
    for part in START_PARTS:
        # Of edm the time is sigma, over four orders of magnitude: even in its logarithm.
        wide = process.prior_scale(last) > 1
        t_start = last * (first / last) ** part if wide else last - part * (last - first)
        if process.discrete:
            t_start = float(min(round(t_start), last - 1 - START_PARTS.index(part)))
        if t_start > first and t_start != candidate.t_start:
            yield replace(candidate, t_start=t_start)
    if candidate.t_start != last:
        yield replace(candidate, t_start=last)


def _near_solvers(solver: str, process: Schedule) -> Iterator[str]:
    """k and l moved by one, l by fractions on continuous schedules; order moved by one."""
    if found := re.fullmatch(r"pfdiff:k=(\d+),l=([\d.]+)(.*)", solver):
        k, l, rest = int(found[1]), float(found[2]), found[3]
        steps = (-1.0, 1.0) if process.discrete or "base=" in rest else (*L_STEPS, -1.0, 1.0)
        pairs = [(k, l + step) for step in steps] + [(k - 1, l), (k + 1, l), (k - 1, l - 1), (k + 1, l + 1)]
        yield from (f"pfdiff:k={a},l={b:g}{rest}" for a, b in pairs if a >= 1 and b > 0)
    elif found := re.fullmatch(r"(.*order=)(\d)(.*)", solver):
        yield from (f"{found[1]}{int(found[2]) + step}{found[3]}" for step in (-1, 1) if int(found[2]) + step > 0)


def grid_points(candidate: Candidate, setting: Setting) -> tuple[float, ...]:
    """The times that a candidate's grid rule means, the clean point included. Raises InputError."""
    solver, process = parse_solver(candidate.solver), parse_schedule(setting.schedule)
    intervals = solver.intervals(setting.nfe)
    points = make_grid(candidate.grid, process, intervals, candidate.t_start, setting.end, solver.evaluations)
    return tuple(points.tolist())


def with_point(candidate: Candidate, points: tuple[float, ...], place: int, part: float, discrete: bool) -> Candidate:
    """The candidate on explicit times, one of them moved by `part` of the way to its neighbour, at least by 1 if whole.

    part above 0 moves it towards the noise. The times may then fall no more; such a grid does not compile.
    """
    gap = points[place - 1] - points[place] if part > 0 else points[place] - points[place + 1]
    step = part * gap
    if discrete:
        step = float(np.copysign(max(1.0, np.rint(abs(step))), part))
    moved = (*points[:place], points[place] + step, *points[place + 1 :])
    return replace(candidate, grid=moved, t_start=points[0])


def compiled(candidates: Iterable[Candidate], setting: Setting, seen: set[str]) -> Iterator[tuple[Candidate, Program]]:
    """The candidates that exist, with their programs; of those that do the same, the first. `seen` grows."""
    for candidate in candidates:
        try:
            program = candidate.compile(setting)
        except InputError:
            continue
        if program.noises and not setting.draws:
            raise InputError(stochastic_refused(program))
        mark = behaviour(program)
        if mark not in seen:
            seen.add(mark)
            yield candidate, program


def behaviour(program: Program) -> str:
    """The same for two programs that ask the same questions and give the same sample, whatever their names."""
    asked: list[float] = []

    def made_up(x: Any, t: float) -> Any:
        asked.append(t)
        return np.sin(1.7 * x + 0.01 * t) - 0.3 * x

    drawn = np.sin(np.arange(1.0, 3 * program.noises + 1)).reshape(-1, 3) if program.noises else None
    sample = program.evaluate(made_up, np.array([0.31, -1.27, 0.84]), steps_noise=drawn)
    rounded = [f"{value:.9g}" for value in (*asked, *sample)]
    return hashlib.sha256(" ".join(rounded).encode()).hexdigest()


def lacks_variances(solver: str) -> bool:
    """Whether it is of Analytic-DPM, without the variances that belong to a network and its times."""
    try:
        method = parse_solver(solver)
    except InputError:
        return False
    return isinstance(method, Analytic) and method.lacks_variances


def _parameterisation(solver: str) -> str | None:
    try:
        return parse_solver(solver).parameterisation
    except InputError:
        return None
