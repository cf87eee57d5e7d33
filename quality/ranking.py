"""What `tune` found: samplers, best first, and the record of the search that an engine keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from ..engine.compiler.program import Program
from .sampling.reference import Reference

RECORDED = 10  # of the ranking, in the engine's record


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


@final
class Ranking(list[Ranked]):
    """Best first. Beside the samplers:

    nfe, calibration, held_out   evaluations of a sample; numbers of seeds
    criterion                    what the errors are, in words
    reference                    solver, grid and evaluations of the reference, None when errors are distances to data
    evaluations, cached          samples through the network once, all in all; of these read from the cache
    seconds                      wall-clock
    complete                     False when the budget ended the search early
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


def _as_json(value: Any) -> Any:
    """The same without numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _as_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
