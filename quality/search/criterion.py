"""What a search makes small: the interface of errors to a reference and of distances to real pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ...engine.compiler.program import Program
from ..sampling.budget import Budget
from ..sampling.pool import Rows


class Criterion(Protocol):
    """What a search makes small. A tally is what the samples of some rows add to it; tallies are added with `+`."""

    @property
    def budget(self) -> Budget: ...

    def tally(self, program: Program, rows: Rows) -> Any:
        """Run a program on the pool's `rows`, counted. Raises BudgetSpentError."""
        ...

    def error(self, tally: Any, seeds: int) -> float:
        """What a tally of so many seeds amounts to; inf when it is not finite."""
        ...

    def expect(self, asked: Sequence[tuple[Program, Rows]]) -> None:
        """What `tally` will be asked next, so that several may be run at a time. Counts nothing."""
        ...
