"""`compare`: error against network evaluations for any list of solvers, as a table, a log plot and a sheet of pictures.

    result = pfdiff.compare("unet.onnx", nfe=[4, 6, 8, 10], out="compare.png", csv="compare.csv")

A sampler is written `solver@grid/basis`, the last two optional. Grid `best` tries every rule on calibration seeds that
are not those of the reported error.
"""

from __future__ import annotations

import csv as csv_format
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from ..engine.compiler.basis import BASES
from ..engine.compiler.defaults import AUTO
from ..engine.compiler.program import Program
from ..engine.errors import InputError
from ..export.network import Network
from .criteria.error import chosen_seeds, make_judge, make_setting
from .pictures import write as pictures
from .pictures.plot import Curve, log_plot
from .sampling.pool import Floats
from .sampling.reference import Reference
from .sampling.subject import LATENTS, Subject
from .search.candidates import GRIDS, Candidate, Setting, by_default, start_of
from .search.halving import Judge, Progress
from .tune import parse_budget

if TYPE_CHECKING:
    from PIL import Image
    from torch import nn

SOLVERS = ("auto", "ddim", "dpm++:2m", "unipc:order=2", "ipndm:order=3", "pfdiff:k=1,l=1", "pfdiff:k=2,l=1")
COLUMNS = ("solver", "grid", "basis", "nfe", "error", "note")
TILE = 2  # a cell of the sheet shows TILE x TILE samples


@final
@dataclass(frozen=True, eq=False)
class Point:
    """One sampler at one NFE. error: RMS distance to the reference, None where `note` says why there is none."""

    solver: str
    grid: str | tuple[float, ...]
    basis: str
    nfe: int
    error: float | None
    note: str
    program: Program | None


@final
@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found. points: for each sampler asked for, each NFE. seeds: those of the errors.

    samples: by (sampler as asked for, NFE), float32 [shown, *shape]; reference_samples likewise.
    """

    network: str
    points: tuple[Point, ...]
    samplers: tuple[str, ...]
    nfe: tuple[int, ...]
    seeds: int
    reference: Reference
    evaluations: int
    cached: int
    seconds: float
    data_range: tuple[float, float]
    samples: Mapping[tuple[str, int], Floats]
    reference_samples: Floats

    def of(self, sampler: str) -> list[Point]:
        """The points of one sampler, by NFE."""
        at = self.samplers.index(sampler) * len(self.nfe)
        return list(self.points[at : at + len(self.nfe)])

    def csv(self) -> str:
        """The table: solver, grid, basis, nfe, error, note; one line a point."""
        text = io.StringIO()
        writer = csv_format.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for one in self.points:
            grid = one.grid if isinstance(one.grid, str) else " ".join(f"{t:g}" for t in one.grid)
            error = "" if one.error is None else f"{one.error:.6g}"
            writer.writerow([one.solver, grid, one.basis, one.nfe, error, one.note])
        return text.getvalue()

    def plot(self) -> Image.Image:
        """Error against NFE, logarithmic, one line a sampler. InputError: no point has an error."""
        if all(one.error is None for one in self.points):
            first = self.points[0]
            raise InputError(f"nothing to plot; {first.solver}, NFE {first.nfe}: {first.note}")
        curves = [
            Curve(sampler, [(one.nfe, one.error) for one in self.of(sampler) if one.error is not None])
            for sampler in self.samplers
        ]
        low, high = self.data_range
        data = "latents" if self.data_range == LATENTS else f"data in [{low:g}, {high:g}]"
        return log_plot(
            curves,
            title=f"{self.network}: error against network evaluations",
            x_label="network evaluations",
            y_label="RMS error",
            note=f"{self.seeds} seeds, {data}, reference: {self.reference.solver} in {self.reference.nfe} evaluations",
        )

    def sheet(self) -> Image.Image:
        """Rows solvers, columns NFE and the reference, the same seeds in every cell. InputError: no pictures."""
        truth = _tile(_pixels(self.reference_samples, self.data_range))
        rows = []
        for sampler in self.samplers:
            errors = self.of(sampler)
            tiles = [np.full_like(truth, 255) if one.error is None else self._cell(sampler, one.nfe) for one in errors]
            found = [one.error for one in errors if one.error is not None]
            caption = f"{sampler}\nRMS {max(found):.3f} to {min(found):.3f}" if found else sampler
            rows.append(pictures.Row(caption, np.stack([*tiles, truth])))
        return pictures.sheet(
            rows,
            headings=[*(f"NFE {nfe}" for nfe in self.nfe), "reference"],
            title=self.network,
            note=f"the same {len(self.reference_samples)} seeds in every cell",
        )

    def _cell(self, sampler: str, nfe: int) -> NDArray[np.uint8]:
        return _tile(_pixels(self.samples[sampler, nfe], self.data_range))


def compare(
    network: Network | nn.Module | str | Path,
    nfe: int | Sequence[int] = (4, 6, 8, 10),
    solvers: Sequence[str] = SOLVERS,
    *,
    grid: str | None = None,
    basis: str | None = None,
    clip: float | None = None,
    t_start: float | None = None,
    end: str | float = "clean",
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
    progress: Progress | None = None,
) -> Comparison:
    """RMS error to a many-step reference of every solver at every NFE, on `seeds` seeds.

    solvers: `solver`, `solver@grid` or `solver@grid/basis`, "auto" for the default sampler; `grid` and `basis` serve
    where none is said, by default those of the default sampler. Grid "best" is the rule with the least error on
    `calibration` further seeds.
    out, csv, sheet: files to write, the log plot (.png), the table, and the samples (.png; images only). The rest: as
    in `pfdiff.tune`.
    Where a solver is not defined at an NFE its error is None and `note` says why. Raises InputError, BackendError.
    """
    counts = tuple(dict.fromkeys([nfe] if isinstance(nfe, int) else nfe))
    samplers = tuple(dict.fromkeys(solvers))
    if not counts or not samplers:
        raise InputError("nothing to compare: give at least one NFE and one solver")
    for name, value, least in (("seeds", seeds, 1), ("calibration", calibration, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            hint = "; the number of them, and seed= says which" if name == "seeds" else ""
            raise InputError(f"{name}={value!r}, expected an integer of at least {least}{hint}")
    for path in filter(None, (out, sheet)):
        if pictures.kind_of(Path(path)) != "grid":
            raise InputError(f"output {path}: expected a file that ends in .png")
    subject = Subject.of(network)
    shape, latents = subject.contract.shape, subject.sample_range == LATENTS
    if sheet is not None and (latents or len(shape) != 3 or shape[0] not in pictures.MODES):
        what = f"{'latents' if latents else 'samples'} of shape {list(shape)}"
        raise InputError(f"output {sheet}: {what} are no pictures; leave it out")
    settings = [make_setting(subject, count, clip, t_start, end) for count in counts]
    chosen = Reference.of(settings[0].schedule, settings[0].t_start, reference)
    parsed = [parse_sampler(text, grid or AUTO, basis) for text in samplers]
    tell: Progress = progress or (lambda stage, done, expected: None)
    searching = any(one.grid == "best" for one in parsed)
    budget = parse_budget(None)
    calibration = calibration if searching else 0

    points: list[Point] = []
    shown: dict[tuple[str, int], Floats] = {}
    with subject.opened(backend, threads) as opened:
        drawn = chosen_seeds(seed, calibration, seeds)
        judge = make_judge(subject, opened, drawn, conditions, settings[0], chosen, budget, tell)
        bench = _Bench(judge, calibration, seeds)
        for done, (text, candidate) in enumerate(zip(samplers, parsed, strict=True)):
            for setting in settings:
                tell(f"{text}, NFE {setting.nfe}", done, len(samplers))
                point = bench.point(candidate, setting)
                points.append(point)
                if sheet is not None and point.program is not None:
                    shown[text, setting.nfe] = bench.samples(point.program)
    result = Comparison(
        network=subject.contract.name,
        points=tuple(points),
        samplers=samplers,
        nfe=counts,
        seeds=seeds,
        reference=chosen,
        evaluations=budget.spent,
        cached=budget.cached,
        seconds=budget.elapsed,
        data_range=subject.sample_range,
        samples=shown,
        reference_samples=bench.truth,
    )
    if csv is not None:
        _write_text(Path(csv), result.csv())
    if out is not None:
        pictures.write_picture(Path(out), result.plot())
    if sheet is not None:
        pictures.write_picture(Path(sheet), result.sheet())
    return result


def parse_sampler(text: str, grid: str, basis: str | None) -> Candidate:
    """`solver@grid/basis` as a candidate; what is missing is `grid` and `basis`. Raises InputError."""
    solver, at, rest = text.partition("@")
    rule, slash, stored = rest.partition("/")
    stored = stored if slash else basis
    if not solver or (at and not rule) or (stored is not None and stored not in BASES):
        raise InputError(f"sampler {text!r}, expected solver, solver@grid or solver@grid/basis, such as ddim@logsnr")
    return Candidate(solver, rule or grid, stored, None)


@final
class _Bench:
    """Errors of candidates on the last `seeds` rows of a judge, grids chosen on the first `calibration`."""

    def __init__(self, judge: Judge, calibration: int, seeds: int) -> None:
        self._judge = judge
        self._calibration = np.arange(calibration)
        self._rows = np.arange(calibration, calibration + seeds)
        self._first = self._rows[: TILE * TILE]
        self.truth: Floats = judge.targets[self._first].reshape(-1, *judge.pool.shape)

    def point(self, candidate: Candidate, setting: Setting) -> Point:
        """The candidate at one NFE, on its best grid where that is asked for."""
        try:
            if AUTO in (candidate.solver, candidate.grid):
                candidate = by_default(candidate, setting)
            else:
                candidate = replace(candidate, t_start=start_of(candidate.grid, setting.t_start))
            program = self._best(candidate, setting) if candidate.grid == "best" else candidate.compile(setting)
        except InputError as error:
            return Point(candidate.solver, candidate.grid, candidate.basis or "", setting.nfe, None, str(error), None)
        error = math.sqrt(self._judge.square(program, self._rows) / len(self._rows))
        note = "" if math.isfinite(error) else "not finite"
        return Point(
            program.solver, program.grid, program.basis, setting.nfe, error if not note else None, note, program
        )

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
                found.append((self._judge.square(program, self._calibration), len(found), program))
        if not found:
            raise failure or InputError(f"{candidate.solver} is defined on no grid")
        return min(found)[2]

    def samples(self, program: Program) -> Floats:
        """The samples float32 [shown, *shape] of the sheet's seeds."""
        return self._judge.pool.sample(program, self._first).reshape(-1, *self._judge.pool.shape)


# Pictures.
def _pixels(samples: Floats, data_range: tuple[float, float]) -> NDArray[np.uint8]:
    low, high = data_range
    scaled = np.clip((samples.astype(np.float64) - low) / (high - low), 0, 1) * 255
    return np.rint(scaled).astype(np.uint8).transpose(0, 2, 3, 1)


def _tile(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Up to TILE x TILE images uint8 [n, H, W, C] side by side, uint8 [TILE H, TILE W, C]."""
    count, height, width, channels = images.shape
    page = np.full((TILE * height, TILE * width, channels), 255, np.uint8)
    for index in range(min(count, TILE * TILE)):
        row, column = divmod(index, TILE)
        page[row * height : (row + 1) * height, column * width : (column + 1) * width] = images[index]
    return page


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; choose a file that can be written") from None
