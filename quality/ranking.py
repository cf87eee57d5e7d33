"""What `tune` found: samplers, best first, and the record of the search that an engine keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from ..engine.compiler.program import Program
from ..engine.notebook import html_table
from .sampling.reference import Reference

RECORDED = 10  # of the ranking, in the engine's record and in tables
COLUMNS = ("rank", "solver", "grid", "basis", "start", "error", "held out")


@final
@dataclass(frozen=True, eq=False)
class Ranked:
    """One sampler of the ranking.

    solver, grid, basis, t_start, clip: as `pfdiff.compile` takes them; a refined program's solver ends in " refined".
    error: on the calibration seeds, RMS distance to the reference, clipped to the data's range, or what the ranking's
    `criterion` says. held_out_error: on seeds that chose nothing, None where it was not measured. program: the table.
    """

    solver: str
    grid: str | tuple[float, ...]
    basis: str
    t_start: float
    clip: float | None
    error: float
    held_out_error: float | None
    program: Program

    def __repr__(self) -> str:
        held = "" if self.held_out_error is None else f", held out {error_text(self.held_out_error)}"
        return (
            f"Ranked({self.solver}, {self.grid_text}/{self.basis} from {self.t_start:g}: error "
            f"{error_text(self.error)}{held})"
        )

    @property
    def grid_text(self) -> str:
        """The grid's rule, or how many times were given."""
        return self.grid if isinstance(self.grid, str) else f"{len(self.grid)} given times"


@final
class Ranking(list[Ranked]):
    """Best first. Beside the samplers:

    nfe, calibration, held_out   evaluations of a sample; numbers of seeds
    criterion                    what the errors are, in words
    reference                    solver, grid and evaluations of the reference, None when errors are distances to data
    evaluations, cached          samples through the network once, all in all; of these read from the cache
    seconds                      wall-clock
    complete                     False when the budget ended the search early
    reference_error              how far the reference is from one of twice its evaluations, None where not measured
    plan                         what the search was going to do, said before it was done
    guard                        None, or why the default or DDIM stands before what was best on the calibration seeds
    stored                       None, or how the program fares that the engine of `out` holds already
    keeps                        whether that program stays in the engine
    left_out                     of the solvers that were asked for, those without a candidate, and why
    doubt                        None, or why the errors say little
    refinement                   None, or {"from": .., "training": [..], "validation": [..], "kept": bool, ..}
    """

    def __init__(self, ranked: Sequence[Ranked], **record: Any) -> None:
        super().__init__(ranked)
        self.nfe: int = record["nfe"]
        self.calibration: int = record["calibration"]
        self.held_out: int = record["held_out"]
        self.criterion: str = record["criterion"]
        self.reference: Reference | None = record["reference"]
        self.evaluations: int = record["evaluations"]
        self.cached: int = record["cached"]
        self.seconds: float = record["seconds"]
        self.complete: bool = record["complete"]
        self.refinement: dict[str, Any] | None = record["refinement"]
        self.reference_error: float | None = record.get("reference_error")
        self.plan: str | None = record.get("plan")
        self.guard: str | None = record.get("guard")
        self.left_out: tuple[str, ...] = record.get("left_out", ())
        self.doubt: str | None = record.get("doubt")
        self.stored: str | None = None
        self.keeps = False

    def distinct(self) -> list[Ranked]:
        """Of samplers that differ in single times only, the best; best first."""
        found: dict[tuple[str, str, str], Ranked] = {}
        for one in self:
            found.setdefault((one.solver, one.grid_text, one.basis), one)
        return list(found.values())

    def shown(self, most: int = RECORDED) -> list[tuple[int, Ranked]]:
        """(rank, sampler) of the rows of a table: the first of `distinct`, and the best DDIM wherever it is."""
        ranked = list(enumerate(self.distinct(), 1))
        plain = next(((rank, one) for rank, one in ranked if one.solver == "ddim"), None)
        rows = ranked[:most]
        return rows if plain is None or plain in rows else [*rows, plain]

    @property
    def held_out_note(self) -> str | None:
        """Why cells of the last column are empty; None where none is."""
        rows = [one for _, one in self.shown()]
        missing = sum(one.held_out_error is None for one in rows)
        if not missing:
            return None
        if missing == len(rows):
            why = "no seeds were held out" if not self.held_out else "the budget ended before held-out seeds were run"
            return f"held out: {why}"
        return f"held out: only the best on the calibration seeds are judged on them, {len(rows) - missing} here"

    def table(self) -> list[tuple[str, ...]]:
        """The rows of `shown` under COLUMNS, as text."""
        return [
            (
                str(rank),
                one.solver,
                one.grid_text,
                one.basis,
                f"{one.t_start:.4g}",
                error_text(one.error),
                error_text(one.held_out_error),
            )
            for rank, one in self.shown()
        ]

    @property
    def summary(self) -> str:
        """What was searched, in one line."""
        seeds = f"{self.calibration} calibration and {self.held_out} held-out seeds"
        return f"NFE {self.nfe}: {self.criterion}, {seeds}"

    def __repr__(self) -> str:
        best = f"; best {self[0]!r}" if self else ""
        return f"Ranking(NFE {self.nfe}, {len(self)} samplers{best})"

    def __str__(self) -> str:
        rows = [COLUMNS, *self.table()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
        left = (False, True, True, True, False, False, False)
        lines = [
            "  ".join(
                cell.ljust(width) if is_left else cell.rjust(width)
                for cell, width, is_left in zip(row, widths, left, strict=True)
            ).rstrip()
            for row in rows
        ]
        return "\n".join(filter(None, [self.summary, *lines, self.held_out_note, self.doubt]))

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        return html_table(self.table(), COLUMNS, self.summary)

    def to_dict(self) -> dict[str, Any]:
        """The record of the search as plain JSON data, with the first ten of the ranking.

        An error that is not finite, of samples that are not, is None: JSON has no infinity.
        """
        return _as_json(
            {
                "nfe": self.nfe,
                "calibration_seeds": self.calibration,
                "held_out_seeds": self.held_out,
                "criterion": self.criterion,
                "reference": vars(self.reference) if self.reference else None,
                "reference_error": self.reference_error,
                "plan": self.plan,
                "guard": self.guard,
                "evaluations": self.evaluations,
                "cached_evaluations": self.cached,
                "seconds": round(self.seconds, 2),
                "complete": self.complete,
                "refinement": self.refinement,
                "ranking": [
                    {
                        "solver": one.solver,
                        "grid": one.grid,
                        "basis": one.basis,
                        "t_start": one.t_start,
                        "clip": one.clip,
                        "error": one.error,
                        "held_out_error": one.held_out_error,
                    }
                    for one in self[:RECORDED]
                ],
            }
        )


def error_text(value: float | None) -> str:
    """An error in a table: four decimals, or two digits below 0.001; nothing for None."""
    return "" if value is None else f"{value:.4f}" if value >= 0.001 else f"{value:.1e}"


def _as_json(value: Any) -> Any:
    """The same without numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _as_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
