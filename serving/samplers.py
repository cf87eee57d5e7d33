"""The samplers of a served engine by name: its own programs, and DDIM and PFDiff beside them.

`engine` is what was built or tuned into the directory. `ddim` and `pfdiff` are compiled here, for more numbers of
evaluations, with the grid rule, start, basis and clip of the engine's own program of the nearest NFE that has a grid
rule. So they differ in the solver alone. They are small tables: the network is loaded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from ..engine.api import Engine
from ..engine.compiler.compile import compile
from ..engine.compiler.program import Program
from ..engine.errors import InputError

OWN = "engine"
SOLVERS = {"ddim": "ddim", "pfdiff": "pfdiff:k=2,l=1"}
NFES = (4, 5, 6, 8, 10, 12, 15, 20)  # of the compiled ones, with those that the engine holds
GRID = "logsnr"  # where the engine's own is a list of times


@final
@dataclass(frozen=True)
class Sampler:
    """One program as the list of engines shows it. digest: equal ones are the same table. tuned: a search found it."""

    solver: str
    grid: str
    basis: str
    digest: str
    tuned: bool = False


def compared(engine: Engine) -> dict[str, dict[int, Program]]:
    """The programs of `ddim` and `pfdiff` by NFE; what the schedule has too few times for is left out."""
    found: dict[str, dict[int, Program]] = {name: {} for name in SOLVERS}
    by_rule = {nfe: one for nfe, one in engine.programs.items() if isinstance(one.grid, str)} or engine.programs
    for nfe in sorted({*NFES, *engine.programs}):
        like = by_rule[min(by_rule, key=lambda held: (abs(held - nfe), held))]
        for name, solver in SOLVERS.items():
            try:
                found[name][nfe] = compile(
                    solver,
                    like.schedule,
                    nfe,
                    like.grid if isinstance(like.grid, str) else GRID,
                    like.basis,
                    like.prediction,
                    like.clip,
                    like.t_start,
                    end=like.end,
                    sigma_data=like.sigma_data,
                )
            except InputError:
                continue
    return {name: programs for name, programs in found.items() if programs}


def described(programs: Mapping[int, Program], provenance: Mapping[str, Any] | None = None) -> dict[int, Sampler]:
    """What is said of programs, by NFE. provenance: of the engine, whose entry "search" names what was tuned."""
    tuned = (provenance or {}).get("search", {})
    return {
        nfe: Sampler(
            one.solver,
            one.grid if isinstance(one.grid, str) else f"{len(one.grid)} times",
            one.basis,
            one.digest[:16],
            "calls" not in tuned.get(str(nfe), {"calls": 0}),  # which the choice of a build has
        )
        for nfe, one in programs.items()
    }
