"""Solvers that a search was asked for by name and that have no candidate, and why."""

from __future__ import annotations

from collections.abc import Sequence

from ...engine.compiler.grid import Grid
from ...engine.errors import InputError, first_line
from .candidates import Setting, all_candidates, lacks_variances


def left_out(
    setting: Setting, solvers: Sequence[str] | None, grids: Sequence[Grid] | None, bases: Sequence[str] | None
) -> tuple[str, ...]:
    """A line for each of `solvers` that is defined on none of the grids in none of the bases."""
    lines: list[str] = []
    for solver in dict.fromkeys(solvers or ()):
        if lacks_variances(solver):
            lines.append(f"{solver} is left out: pfdiff build estimates its variances; give it with x0_var=")
        elif why := _why_not(setting, solver, grids, bases):
            lines.append(f"{solver} is left out: {why}")
    return tuple(lines)


def _why_not(setting: Setting, solver: str, grids: Sequence[Grid] | None, bases: Sequence[str] | None) -> str | None:
    """What refuses its last candidate; None when one compiles."""
    why = None
    for candidate in all_candidates(setting, solvers=[solver], grids=grids, bases=bases):
        try:
            candidate.compile(setting)
        except InputError as error:
            why = first_line(error)
        else:
            return None
    return why
