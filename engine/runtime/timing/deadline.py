"""How many evaluations fit into a deadline: each program's 99th percentile, measured on this machine when first asked.

A percentile of calls that have been made, not a bound on those to come: an operating system that gives the core to
somebody else is not foreseen.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any, final

import numpy as np

from ...errors import InputError
from ...json_fields import is_number

CALLS, FEWEST_CALLS = 300, 50  # that are timed; at least, where they take long
SECONDS = 1.0  # for one program
WARM_UP = 5

Call = Callable[[], object]  # one whole call, finished when it returns


def p99_ms(call: Call) -> float:
    """99th percentile of `call`, of up to 300 calls in about a second."""
    for _ in range(WARM_UP):
        call()
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < CALLS and (len(times) < FEWEST_CALLS or time.perf_counter() < end):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.percentile(times, 99))


@final
class Deadlines:
    """The largest NFE within a deadline, for one engine. call(nfe, batch): the call to time, of a number."""

    def __init__(self, call: Callable[[int, int], Callable[[int], object]]) -> None:
        self._call = call
        self._p99_ms: dict[tuple[int, int], float] = {}

    def nfe(self, deadline_ms: Any, batch: int, held: Iterable[int], *, instead: int | None = None) -> int:
        """Of the NFE `held`, the largest whose p99 for a batch is at most `deadline_ms`.

        instead: an NFE that was given too. Raises InputError: it was, or none fits.
        """
        if instead is not None:
            raise InputError("got both nfe and deadline_ms, expected one of them")
        if not (is_number(deadline_ms) and deadline_ms > 0):
            raise InputError(f"deadline_ms={deadline_ms!r}, expected milliseconds above 0, such as 10")
        found = None
        for nfe in sorted(held):
            if self.p99_ms(nfe, batch) > deadline_ms:
                break
            found = nfe
        if found is not None:
            return found
        least = min(held)
        raise InputError(
            f"deadline_ms={deadline_ms:g}: {least} evaluation{'s' * (least > 1)} of {batch} take "
            f"{self.p99_ms(least, batch):.3g} ms (p99) here; give more time, or a smaller network"
        )

    def p99_ms(self, nfe: int, batch: int) -> float:
        """Of whole calls; measured once."""
        if (nfe, batch) not in self._p99_ms:
            self._p99_ms[nfe, batch] = p99_ms(functools.partial(self._call(nfe, batch), 0))
        return self._p99_ms[nfe, batch]
