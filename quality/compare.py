"""`compare`: error against network evaluations for any list of solvers, as a table, a log plot and a sheet of pictures.

    result = pfdiff.compare("unet.onnx", nfe=[4, 6, 8, 10], out="compare.png", csv="compare.csv")

A sampler is written `solver@grid/basis`, the last two optional. Grid `best` tries every rule on calibration seeds that
are not those of the reported error.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from ..engine.artifact import read_artifact
from ..engine.compiler.basis import BASES
from ..engine.compiler.defaults import AUTO
from ..engine.compiler.program import Program
from ..engine.errors import InputError
from ..engine.progress import Stages
from ..export.choice.sampler_choice import is_exact
from ..export.network import Network
from .comparison import STORED, TILE, Comparison, Point
from .criteria.error import ErrorCriterion, make_error_criterion
from .output_files import OutputFiles
from .pictures.pixels import MODES
from .pictures.plot import write_plot
from .pictures.write import replaced, write_picture
from .refusals import check_asked, check_grids
from .sampling.budget import parse_budget
from .sampling.pool import Floats, stochastic_refused
from .sampling.reference import Reference
from .sampling.seeds import chosen_seeds
from .sampling.subject import LATENTS, Subject
from .search.candidates import GRIDS, Candidate, Setting, by_default, compiled, make_setting, start_of

if TYPE_CHECKING:
    from torch import nn

SOLVERS = ("auto", "ddim", "dpm++:2m", "unipc:order=2", "ipndm:order=3", "pfdiff:k=1,l=1", "pfdiff:k=2,l=1")
NAMED = AUTO, STORED  # what is no solver itself
BEST = "best"  # what is no grid itself


def compare(
    network: Network | nn.Module | str | Path,
    nfe: int | Sequence[int] = (4, 6, 8, 10),
    solvers: Sequence[str] | None = None,
    *,
    grid: str | None = None,
    basis: str | None = None,
    clip: float | None = None,
    t_start: float | None = None,
    end: str | float | None = None,
    seeds: int = 32,
    calibration: int = 16,
    seed: int = 0,
    conditions: Mapping[str, Any] | None = None,
    reference: int | None = None,
    backend: str = "auto",
    threads: int | None = None,
    out: str | os.PathLike[str] | None = None,
    csv: str | os.PathLike[str] | None = None,
    sheet: str | os.PathLike[str] | None = None,
    progress: Stages | None = None,
) -> Comparison:
    """RMS error to a many-step reference of every solver at every NFE, on `seeds` seeds.

    solvers: `solver`, `solver@grid` or `solver@grid/basis`, "auto" for the default sampler by its rule or scheduler,
    "stored" for what an engine directory holds; by default SOLVERS, and of an engine the stored one before them. `grid`
    and `basis` serve where none is said, by default those of `build`. Grid "best" is the rule with the
    least error on `calibration` further seeds.
    out, csv, sheet: files to write: the log plot (.png, .svg, .pdf), the table, the samples (.png; images only). The
    rest: as in `pfdiff.tune`.
    Where a solver is not defined at an NFE its error is None and `note` says why. Raises InputError, BackendError.
    """
    counts = tuple(dict.fromkeys([nfe] if isinstance(nfe, int) else nfe))
    files = OutputFiles.of(out, csv, sheet)
    subject = Subject.of(network)
    held = {} if subject.engine is None else read_artifact(subject.engine, verify=False).programs
    usual = (STORED, *SOLVERS) if any(count in held for count in counts) else SOLVERS
    samplers = tuple(dict.fromkeys(usual if solvers is None else solvers))
    _check_numbers(counts, samplers, seeds, calibration, seed)
    _check_pictures(files.sheet, subject)
    settings = [make_setting(subject, count, clip, t_start, end) for count in counts]
    chosen = Reference.of(settings[0].schedule, settings[0].t_start, reference, settings[0].prediction)
    candidates = {text: parse_sampler(text, grid or AUTO, basis) for text in samplers}
    check_grids((one.grid for one in candidates.values() if one.grid not in (AUTO, BEST)), subject)
    check_asked(max(counts), (one.solver for one in candidates.values() if one.solver not in NAMED), reference)
    _check_noise(candidates.values(), settings[0])
    calibration = calibration if any(one.grid == BEST for one in candidates.values()) else 0
    tell, budget = progress or (lambda stage, done, expected: None), parse_budget(None)
    with subject.opened(backend, threads) as opened:
        drawn = chosen_seeds(seed, calibration, seeds)
        criterion = make_error_criterion(subject, opened, drawn, conditions, settings[0], chosen, budget, tell)
        bench = _Bench(criterion, calibration, seeds, held)
        result = bench.measure(subject.contract.name, chosen, candidates, settings, tell, keep=sheet is not None)
    _write(files, result)
    return result


def _check_numbers(counts: Sequence[int], samplers: Sequence[str], seeds: int, calibration: int, seed: int) -> None:
    if not counts or not samplers:
        raise InputError("nothing to compare: give at least one NFE and one solver")
    for name, value, least in (("seeds", seeds, 1), ("calibration", calibration, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            hint = "; the number of them, and seed= says which" if name == "seeds" else ""
            raise InputError(f"{name}={value!r}, expected an integer of at least {least}{hint}")


def _check_noise(candidates: Iterable[Candidate], setting: Setting) -> None:
    """Raises InputError for a solver that draws noise, before any network is asked."""
    for candidate in candidates:
        if candidate.solver not in NAMED:
            list(compiled([replace(candidate, grid="uniform")], setting, set()))


def _check_pictures(sheet: Path | None, subject: Subject) -> None:
    """Raises InputError when a sheet is asked for of what is no picture."""
    shape, latents = subject.contract.shape, subject.sample_range == LATENTS
    if sheet is not None and (latents or len(shape) != 3 or shape[0] not in MODES):
        what = f"{'latents' if latents else 'samples'} of shape {list(shape)}"
        raise InputError(f"output {sheet}: {what} are no pictures; leave it out")


def _write(files: OutputFiles, result: Comparison) -> None:
    """All that were asked for. Raises InputError."""
    if files.table is not None:
        with replaced(files.table) as part:
            part.write_text(result.csv(), encoding="utf-8")
    if files.plot is not None:
        write_plot(files.plot, result.plot())
    if files.sheet is not None:
        write_picture(files.sheet, result.sheet())


def parse_sampler(text: str, grid: str, basis: str | None) -> Candidate:
    """`solver@grid/basis` as a candidate; what is missing is `grid` and `basis`. Raises InputError."""
    solver, at, rest = text.partition("@")
    rule, slash, stored = rest.partition("/")
    stored = stored if slash else basis
    if not solver or (at and not rule) or (stored is not None and stored not in BASES):
        raise InputError(f"sampler {text!r}, expected solver, solver@grid or solver@grid/basis, such as ddim@logsnr")
    if solver == STORED and at:
        raise InputError(f"sampler {text!r}: the stored sampler has a grid and a basis of its own; give stored alone")
    return Candidate(solver, rule or grid, stored, None)


@final
class _Bench:
    """Errors of candidates on the last `seeds` rows of a criterion; grids are chosen on the first `calibration`."""

    def __init__(self, criterion: ErrorCriterion, calibration: int, seeds: int, held: Mapping[int, Program]) -> None:
        self._criterion = criterion
        self._held = held
        self._calibration = np.arange(calibration)
        self._rows = np.arange(calibration, calibration + seeds)
        self._first = self._rows[: TILE * TILE]
        self.truth: Floats = criterion.targets[self._first].reshape(-1, *criterion.pool.shape)

    def measure(
        self,
        network: str,
        reference: Reference,
        candidates: Mapping[str, Candidate],
        settings: Sequence[Setting],
        tell: Stages,
        *,
        keep: bool,
    ) -> Comparison:
        """Every candidate at every NFE; with `keep` the samples of the sheet too."""
        points: list[Point] = []
        kept: dict[tuple[str, int], Floats] = {}
        for done, (text, candidate) in enumerate(candidates.items()):
            for setting in settings:
                tell(f"{text}, NFE {setting.nfe}", done, len(candidates))
                points.append(point := self.point(candidate, setting))
                if keep and point.program is not None:
                    kept[text, setting.nfe] = self.samples(point.program)
        budget = self._criterion.budget
        return Comparison(
            network=network,
            points=tuple(points),
            samplers=tuple(candidates),
            nfe=tuple(setting.nfe for setting in settings),
            seeds=len(self._rows),
            reference=reference,
            evaluations=budget.spent,
            cached=budget.cached,
            seconds=budget.elapsed,
            data_range=self._criterion.data_range,
            doubt=self._criterion.doubt,
            samples=kept,
            reference_samples=self.truth,
        )

    def point(self, candidate: Candidate, setting: Setting) -> Point:
        """The candidate at one NFE, on its best grid where that is asked for."""
        try:
            program = self._program(candidate, setting)
            if program.noises:
                raise InputError(stochastic_refused(program))
        except InputError as error:
            return Point(candidate.solver, candidate.grid, candidate.basis or "", setting.nfe, None, str(error), None)
        error = math.sqrt(self._criterion.square(program, self._rows) / len(self._rows))
        note = "" if math.isfinite(error) else "not finite"
        return Point(
            program.solver, program.grid, program.basis, setting.nfe, error if not note else None, note, program
        )

    def _program(self, candidate: Candidate, setting: Setting) -> Program:
        """Raises InputError where the candidate is not defined."""
        if candidate.solver == STORED:
            return self._stored(setting.nfe)
        if AUTO in (candidate.solver, candidate.grid) or is_exact(candidate.grid):
            candidate = by_default(candidate, setting)
        else:
            candidate = replace(candidate, t_start=start_of(candidate.grid, setting.t_start))
        return self._best(candidate, setting) if candidate.grid == BEST else candidate.compile(setting)

    def _stored(self, nfe: int) -> Program:
        program = self._held.get(nfe)
        if program is None:
            counts = ", ".join(map(str, sorted(self._held))) or "none, as the network is no engine"
            raise InputError(f"no sampler of {nfe} evaluations is stored; stored: {counts}")
        return program

    def _best(self, candidate: Candidate, setting: Setting) -> Program:
        found: list[tuple[float, int, Program]] = []
        failure: InputError | None = None
        for grid in GRIDS:
            for basis in (candidate.basis,) if candidate.basis else BASES:
                try:
                    program = replace(candidate, grid=grid, basis=basis).compile(setting)
                except InputError as error:
                    failure = error
                    continue
                found.append((self._criterion.square(program, self._calibration), len(found), program))
        if not found:
            raise failure or InputError(f"{candidate.solver} is defined on no grid")
        return min(found)[2]

    def samples(self, program: Program) -> Floats:
        """The samples float32 [shown, *shape] of the sheet's seeds."""
        return self._criterion.pool.sample(program, self._first).reshape(-1, *self._criterion.pool.shape)
