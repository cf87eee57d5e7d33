"""How long a run of the suite may take: `--bench-budget 60s`, and the line that says how long it will take without."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import pytest

UNITS = {"s": 1, "min": 60, "h": 3600}
SHARE = 0.5  # of the budget that is timing; the rest is loading engines and rounds that take longer than planned
LEAST_SECONDS = 0.05  # of one measurement


@final
@dataclass
class Budget:
    """A limit in seconds for the whole run, None for none; its clock starts with the first test."""

    text: str | None
    seconds: float | None
    _end: float | None = field(default=None)

    def share(self, wanted: float, count: int) -> float:
        """Seconds for each of `count` measurements that would take `wanted`."""
        if self.seconds is None:
            return wanted
        return max(LEAST_SECONDS, min(wanted, SHARE * self.seconds / max(count, 1)))

    @property
    def is_spent(self) -> bool:
        """Whether its end has come; not before the first test, which starts the clock."""
        if self.seconds is None:
            return False
        if self._end is None:
            self._end = time.monotonic() + self.seconds
            return False
        return time.monotonic() > self._end

    def announcement(self, count: int, wanted: float) -> str:
        """How long `count` benchmarks take, in one line."""
        if self.seconds is not None:
            return f"pfdiff.bench: {count} benchmarks within {self.text}, small batches first; the rest is skipped"
        minutes = count * wanted / 60
        return (
            f"pfdiff.bench: {count} benchmarks of {wanted:g} s each, and loading: at least {minutes:.1f} min, several "
            "times that where one call takes long; --bench-budget 60s limits all of them together"
        )


def parse_budget(text: str | None) -> Budget:
    """The limit that '60s', '2min' or '1h' means. Raises pytest.UsageError."""
    if text is None:
        return Budget(None, None)
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)(s|min|h)", text)
    if not found or float(found[1]) <= 0:
        raise pytest.UsageError(f"--bench-budget {text!r}: expected a time such as 60s or 2min")
    return Budget(text, float(found[1]) * UNITS[found[2]])


def smallest_first(items: Sequence[Any]) -> list[Any]:
    """Tests in the order of the samples that one call draws, so that a budget covers every kind of them."""

    def size(item: Any) -> tuple[int, int]:
        case = getattr(item, "callspec", None) and item.callspec.params.get("case")
        return (case.batch, case.nfe) if case else (0, 0)

    return sorted(items, key=size)
