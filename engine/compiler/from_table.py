"""A program from a table that somebody else computed: times, and the rows in a basis.

    y_n = T[n, 0] noise + sum over m < n of T[n, 1 + m] d_m,   d_m the network's answer in `basis` at (y_m, t_m)

Every deterministic solver with one network is of this form (arXiv 2403.01329, proposition 3.1), learned ones too.
`noise` is standard normal, so a row that starts from x_T = sigma_max noise has sigma_max in its first column.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import InputError, shown
from .basis import BASES
from .compile import check_options, program_of
from .lower import lower
from .program import MOST_BUFFERS, MOST_NFE, Program
from .schedule import Float64s, parse_schedule


def program_from_table(
    name: str,
    schedule: str,
    times: Sequence[float],
    rows: Sequence[Sequence[float]],
    basis: str,
    prediction: str,
    clip: float | None = None,
    sigma_data: float = 0.5,
) -> Program:
    """The program `name` of a table.

    times [N]: of the evaluations, on the schedule; in any order. rows [N + 1]: y_0 ... y_N-1 and the sample, row n of
    n + 1 numbers, noise first; zeros may follow. basis: eps, x0 or v. The rest as in `compile`.
    Raises InputError.
    """
    if not 1 <= len(times) <= MOST_NFE:
        raise InputError(f"{len(times)} times, expected 1 to {MOST_NFE}, one an evaluation")
    check_options(len(times), basis, prediction, clip, sigma_data)
    if basis not in BASES:
        raise InputError(f"basis {shown(basis)}, expected one of {', '.join(BASES)}")
    process = parse_schedule(schedule)
    asked = process.check(np.asarray(times, np.float64))
    process.alpha(asked)  # whole numbers on a discrete schedule
    if np.any(asked < process.first):
        raise InputError(f"time {asked.min():g}: the network is not evaluated below {process.first:g}")
    table = _square(rows, len(asked))
    lowered = lower(table)
    states = len(lowered[0])
    if states > MOST_BUFFERS:
        raise InputError(
            f"the rows hand on {states} states from one evaluation to the next, expected at most {MOST_BUFFERS}; "
            "let them use fewer of the older answers"
        )
    return program_of(
        lowered,
        process,
        solver=name,
        schedule=schedule,
        grid=(*(float(t) for t in asked), float(process.clean)),
        basis=basis,
        prediction=prediction,
        clip=clip,
        t_start=float(asked[0]),
        end="clean",
        sigma_data=float(sigma_data),
        times=asked,
        table=table,
    )


def _square(rows: Sequence[Sequence[float]], nfe: int) -> Float64s:
    """The rows as [N+1, N+1]. Raises InputError on other numbers of them, or on answers used before they are known."""
    if len(rows) != nfe + 1:
        raise InputError(f"{len(rows)} rows for {nfe} times, expected {nfe + 1}: the network's inputs and the sample")
    table = np.zeros((nfe + 1, nfe + 1))
    for n, row in enumerate(rows):
        if not n + 1 <= len(row) <= nfe + 1:
            raise InputError(f"row {n} has {len(row)} numbers, expected {n + 1}: noise, and the answers before it")
        table[n, : len(row)] = row
        if np.any(table[n, n + 1 :]):
            raise InputError(f"row {n} uses an answer that is not there yet; only its first {n + 1} numbers may count")
    if not np.all(np.isfinite(table)) or not np.any(table[0]):
        raise InputError("the rows have numbers that are not finite, or the first input is nothing")
    return table
