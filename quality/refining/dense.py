"""The whole family of linear samplers with N evaluations: a lower triangular table over noise and answers.

    y_n = T[n, 0] noise + sum over m < n of T[n, 1 + m] z_m,   z_n = answer(y_n, t_n),   sample = y_N

Every past state is itself such a sum, so letting them enter as well adds nothing (arXiv 2403.01329, proposition 3.1).
Inside are the scale of the first noise, T[0, 0]; an analytic first step, x / sqrt(1 + sigma^2) taken for an answer,
which is a multiple of the noise; and evaluation times that no longer belong to the states' noise levels. The columns
are the answers z as a program's updates take them: the network's output, or with clip the clamped x0.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...engine.compiler.lower import lower, rank_bound
from ...engine.compiler.program import MOST_BUFFERS, Program
from ...engine.compiler.schedule import Float64s
from .jacobian import at_times


def table_of(program: Program) -> Float64s:
    """T [N+1, N+1] of a deterministic program. Raises InputError where noise is drawn on the way."""
    program.check_deterministic("a table over its answers")
    unit = np.eye(program.nfe + 1)
    states = program.init[:, None] * unit[0]
    rows = []
    for n in range(program.nfe):
        rows.append(states[0])
        states = program.W[n] @ states + program.w[n][:, None] * unit[n + 1]
    return np.stack([*rows, states[0]])


def most_buffers(nfe: int) -> int:
    """Buffers that the whole family takes: the largest min(rows to come, columns known)."""
    return max(min(n + 1, nfe + 1 - n) for n in range(nfe + 1))


def fits(nfe: int, buffers: int | None) -> bool:
    """Whether the whole family may be used with at most `buffers` buffers, None for as many as a program holds."""
    return most_buffers(nfe) <= (MOST_BUFFERS if buffers is None else buffers)


def with_table(program: Program, table: Float64s, times: Float64s | None = None) -> Program:
    """The program with that table over its answers, asked at `times`. Its dense table in a basis stays behind."""
    init, W, w, V = lower(table)
    changed = replace(program, init=init, W=W, w=w, V=V, U=np.zeros_like(w))
    return changed if times is None else at_times(changed, times)


def buffers_of(table: Float64s) -> int:
    """The fewest buffers that carry the table."""
    return rank_bound(table)


def entries(nfe: int) -> list[tuple[int, int]]:
    """(row, column) of what may be set: row n holds the noise and the answers before y_n."""
    return [(n, m) for n in range(nfe + 1) for m in range(n + 1)]


def jacobian_cost(nfe: int) -> int:
    """Evaluations of a Jacobian by forward differences on one seed: what follows each entry and each time."""
    return sum((n + 2) * (nfe - n) for n in range(nfe))
