"""What `compare` found: a table, a log plot and a sheet of pictures."""

from __future__ import annotations

import csv as csv_format
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np

from ..engine.compiler.defaults import AUTO
from ..engine.compiler.program import Program
from ..engine.errors import InputError
from ..engine.notebook import html_table
from .pictures.pixels import Pixels, pixels_of
from .pictures.plot import Curve, log_plot
from .pictures.sheet import Row, sheet
from .ranking import error_text
from .sampling.pool import Floats
from .sampling.reference import Reference
from .sampling.subject import LATENTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

COLUMNS = ("solver", "grid", "basis", "nfe", "error", "note")
STORED = "stored"  # the sampler of an engine's own, of that NFE
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

    samples: by (sampler as asked for, NFE), float32 [shown, *shape]; reference_samples likewise. doubt: None, or why
    the errors say little.
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
    doubt: str | None = None

    def table(self) -> list[list[str]]:
        """A row for each sampler: its name, its grid, then its error at each NFE, empty where there is none.

        `auto` and `stored` are followed by the sampler that they stand for, and where this or the grid differs by NFE,
        by them all.
        """
        rows = []
        for sampler in self.samplers:
            found = self.of(sampler)
            grids = [one.grid if isinstance(one.grid, str) else f"{len(one.grid)} given times" for one in found]
            errors = (error_text(one.error) for one in found)
            name = f"{sampler}: {_by_nfe(found, [one.solver for one in found])}" if _is_named(sampler) else sampler
            rows.append([name, _by_nfe(found, grids), *errors])
        return rows

    @property
    def columns(self) -> list[str]:
        """The header of `table`."""
        return ["solver", "grid", *(f"NFE {nfe}" for nfe in self.nfe)]

    def __repr__(self) -> str:
        counts = ", ".join(map(str, self.nfe))
        return f"Comparison({self.network}: {len(self.samplers)} samplers at NFE {counts}, {self.seeds} seeds)"

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        return html_table(self.table(), self.columns, f"{self.network}: RMS error, {self.seeds} seeds")

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

    def plot(self) -> Figure:
        """Error against NFE on a logarithmic axis, a line for each sampler, as a matplotlib figure.

        Raises InputError when no point has an error.
        """
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
        """Rows are solvers, columns NFE and the reference; every cell shows the same seeds."""
        truth = _tile(pixels_of(self.reference_samples, self.data_range))
        rows = []
        for sampler in self.samplers:
            errors = self.of(sampler)
            tiles = [np.full_like(truth, 255) if one.error is None else self._cell(sampler, one.nfe) for one in errors]
            found = [one.error for one in errors if one.error is not None]
            rows.append(Row("\n".join([sampler, *_range_of(found)]), np.stack([*tiles, truth])))
        return sheet(
            rows,
            headings=[*(f"NFE {nfe}" for nfe in self.nfe), "reference"],
            title=self.network,
            note=f"the same {len(self.reference_samples)} seeds in every cell",
        )

    def _cell(self, sampler: str, nfe: int) -> Pixels:
        return _tile(pixels_of(self.samples[sampler, nfe], self.data_range))


def _is_named(sampler: str) -> bool:
    return sampler.partition("@")[0] in (AUTO, STORED)


def _by_nfe(points: Sequence[Point], words: Sequence[str]) -> str:
    """The word of all points, or `uniform (4,6), logsnr (8)`."""
    counts: dict[str, list[str]] = {}
    for one, word in zip(points, words, strict=True):
        counts.setdefault(word, []).append(str(one.nfe))
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{word} ({','.join(of)})" for word, of in counts.items())


def _range_of(errors: Sequence[float]) -> list[str]:
    """The line of a row's errors: both ends, one where they read the same, none without errors."""
    ends = list(dict.fromkeys(f"{error:.3f}" for error in (max(errors), min(errors)))) if errors else []
    return [f"RMS {' to '.join(ends)}"] if ends else []


def _tile(images: Pixels) -> Pixels:
    """Up to TILE x TILE images uint8 [n, H, W, C] side by side, uint8 [TILE H, TILE W, C]."""
    count, height, width, channels = images.shape
    page = np.full((TILE * height, TILE * width, channels), 255, np.uint8)
    for index in range(min(count, TILE * TILE)):
        row, column = divmod(index, TILE)
        page[row * height : (row + 1) * height, column * width : (column + 1) * width] = images[index]
    return page
