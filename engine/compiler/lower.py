"""The table of a trace as the fewest buffers that carry it, and the matrices of their in-place updates.

Row n of the table is the state y_n at which the network is evaluated for the n-th time; the sample is the last row.
Columns are (noise, xi_1, ..., xi_K, d_0, ..., d_N-1), where d_n is the network's n-th output and xi_k is drawn after
evaluation draws[k-1]. Here they stand in the order in which they become known: noise, then each d_n, then its draw.

Before d_n arrives, the past must hand on the part of the rows y_n, y_n+1, ..., sample that is known by then: their
columns up to d_n-1 and its draw. The rank of that block is a lower bound on the number of buffers, and a basis made of
y_n and of partial rows reaches it. DDIM has rank 1. PFDiff has rank 2, anchor and springboard, and stores no output:
when an output arrives, every row that will use it is at hand. So it is with a draw, which is made when it is added.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .schedule import Float64s

# Two rows of unit length closer than this count as equal: rounding leaves 1e-15, the densest grids still 1e-4.
DEPENDENT = 1e-11


def rank_bound(table: Float64s, draws: Sequence[int] = ()) -> int:
    """Largest rank of any block (future rows x what is known so far): no fewer buffers can do."""
    rows, count = _in_time(table, draws)
    return max(_rank(known(rows[n:], count[n])) for n in range(len(rows)))


def _in_time(table: Float64s, draws: Sequence[int]) -> tuple[Float64s, list[int]]:
    """The table with its columns in the order in which they become known, and how many are known before each row."""
    nfe, order, count = len(table) - 1, [0], [1]
    for n in range(nfe):
        order += [1 + len(draws) + n, *(1 + k for k, after in enumerate(draws) if after == n)]
        count.append(len(order))
    return np.ascontiguousarray(table[:, order]), count


def known(rows: Float64s, columns: int) -> Float64s:
    """The first columns of rows; a row of which rounding alone is left there counts as zero."""
    cut = rows[:, :columns].copy()
    cut[np.linalg.norm(cut, axis=1) <= DEPENDENT * np.linalg.norm(rows, axis=1)] = 0
    return cut


def _rank(block: Float64s) -> int:
    norms = np.linalg.norm(block, axis=1)
    singular = np.linalg.svd(block / np.where(norms > 0, norms, 1)[:, None], compute_uv=False)
    return int(np.sum(singular > DEPENDENT * singular[0]))


def lower(table: Float64s, draws: Sequence[int] = ()) -> tuple[Float64s, Float64s, Float64s, Float64s]:
    """(init [B], W [N, B, B], w, V [N, B]): s = init noise, then s <- W_n s + w_n d_n + V_n xi_n.

    The first state s_0 is y_n, in the end the sample.
    Walks backwards: the vectors needed before d_n are y_n and those needed after it, cut to what is known; of
    these a largest independent set is kept, y_n first. The forward matrices then follow by least squares, exactly.
    """
    rows, count = _in_time(table, draws)
    nfe = len(rows) - 1
    bases = [rows[nfe:]]
    for n in range(nfe - 1, -1, -1):
        bases.append(_independent(np.vstack([rows[n, : count[n]], known(bases[-1], count[n])])))
    bases.reverse()

    buffers = max(len(b) for b in bases)
    init, W = np.zeros(buffers), np.zeros((nfe, buffers, buffers))
    w, V = np.zeros((nfe, buffers)), np.zeros((nfe, buffers))
    init[: len(bases[0])] = bases[0][:, 0]
    for n in range(nfe):
        now, after = bases[n], bases[n + 1]
        scale = np.linalg.norm(now, axis=1)
        mix = np.linalg.lstsq((now / scale[:, None]).T, after[:, : count[n]].T, rcond=None)[0].T
        # What rounding left of an exact zero is dropped, so that kernels need not read that buffer.
        mix[np.abs(mix) <= DEPENDENT * np.linalg.norm(after, axis=1)[:, None]] = 0
        W[n, : len(after), : len(now)] = mix / scale
        w[n, : len(after)] = after[:, count[n]]
        if n in draws:
            V[n, : len(after)] = after[:, count[n] + 1]
    return init, W, w, V


def _independent(candidates: Float64s) -> Float64s:
    """The first row and a largest set of others independent of it and of each other, in their order."""
    norms = np.linalg.norm(candidates, axis=1)
    residual = candidates / np.where(norms > 0, norms, 1)[:, None]
    chosen = [0]
    while True:
        direction = residual[chosen[-1]] / np.linalg.norm(residual[chosen[-1]])
        residual = residual - np.outer(residual @ direction, direction)
        length = np.linalg.norm(residual, axis=1)
        length[chosen] = 0
        if length.max() <= DEPENDENT:
            return candidates[sorted(chosen)]
        # The most independent, the earlier of near equals: neighbours in time have like scales.
        chosen.append(int(np.argmax(length >= 0.5 * length.max())))
