"""A limit for a search, in network evaluations or in seconds, and what has been spent of it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from ...engine.errors import InputError

SEVERAL = 64  # evaluations that tell a speed
SURE = 0.92  # of the time left that is planned for: evaluations of few samples at once are slower


class BudgetSpentError(Exception):
    """The next piece of work would exceed the budget; what was found so far stands."""


@final
class Budget:
    """Counts evaluations (one sample through the network once) and stops before a limit, None for no limit.

    A budget in evaluations gives the same result every time, one in seconds depends on the machine.
    """

    def __init__(self, evaluations: int | None = None, seconds: float | None = None) -> None:
        self.evaluations = evaluations
        self.seconds = seconds
        self.spent = 0
        self.cached = 0
        self.start = time.monotonic()
        self.reserved, self._reserved_seconds = 0, 0.0  # put by for what comes later
        self.assumed: float | None = None  # evaluations a second, from a trial
        self._run, self._began = 0, self.start  # evaluations in which `passes` was asked, and since when

    def charge(self, evaluations: int, *, cached: bool = False) -> None:
        """Count work about to be done, or read from the cache. Raises BudgetSpentError, counting nothing."""
        if self.evaluations is not None and self.spent + evaluations > self.evaluations - self.reserved:
            raise BudgetSpentError
        if self.seconds is not None and not cached and self.elapsed > self.seconds - self._reserved_seconds:
            raise BudgetSpentError
        self.spent += evaluations
        self.cached += evaluations if cached else 0

    def passes(self, samples: int) -> None:
        """Between two evaluations of so many samples: a limit in time ends a run there. Raises BudgetSpentError."""
        if not self._run:
            self._began = time.monotonic()
        if self.seconds is not None and self.elapsed > self.seconds - self._reserved_seconds:
            raise BudgetSpentError
        self._run += samples

    def affords(self) -> int:
        """Evaluations that the whole budget pays for: as many as it says, or at the speed of those that were run."""
        if self.evaluations is not None:
            return self.evaluations
        before = (self._began if self._run else time.monotonic()) - self.start  # loading, and what else came first
        return int(max(0.0, (self.seconds or 0) - before) * (self.speed or 0))

    @contextmanager
    def reserving(self, evaluations: int) -> Iterator[None]:
        """Within it the budget ends so many evaluations earlier: what comes after has them. May be nested."""
        before = self.reserved, self._reserved_seconds
        self.reserved += evaluations
        self._reserved_seconds += evaluations / self.speed if self.speed else 0.0
        try:
            yield
        finally:
            self.reserved, self._reserved_seconds = before

    def left(self) -> int | None:
        """Evaluations that what is left pays for, None without a limit; with one in time at the speed so far."""
        if self.evaluations is not None:
            return max(0, self.evaluations - self.reserved - self.spent)
        if self.seconds is None:
            return None
        return max(0, int(SURE * (self.seconds - self._reserved_seconds - self.elapsed) * (self.speed or 0)))

    @property
    def part(self) -> float:
        """Of the limit, what is spent; 0 without one."""
        if self.evaluations is not None:
            return self.spent / self.evaluations
        return self.elapsed / self.seconds if self.seconds is not None else 0.0

    @property
    def speed(self) -> float | None:
        """Evaluations a second of those that were run; before there are many the assumed ones, None without."""
        ran = time.monotonic() - self._began
        return self._run / ran if self._run >= SEVERAL and ran > 0 else self.assumed

    def __str__(self) -> str:
        return f"{self.seconds:g}s" if self.evaluations is None and self.seconds else str(self.evaluations)

    @property
    def elapsed(self) -> float:
        """Seconds since the budget was made."""
        return time.monotonic() - self.start


def parse_budget(budget: int | str | None) -> Budget:
    """20000 or "20000" evaluations, "90s", "2min", "1h", None for no limit. Raises InputError."""
    if budget is None:
        return Budget()
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|m|h)?\s*", str(budget))
    number = float(found[1]) if found and not isinstance(budget, bool) else 0.0
    if not found or number <= 0 or (found[2] is None and number != int(number)):
        raise InputError(f"budget {budget!r}, expected a number of evaluations such as 20000, or a time such as 2min")
    if found[2] is None:
        return Budget(evaluations=int(number))
    return Budget(seconds=number * {"s": 1, "m": 60, "min": 60, "h": 3600}[found[2]])
