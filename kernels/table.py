"""The device form of a program: one float32 coefficient row and one mask pair for each evaluation.

Row n of the table belongs to the update after evaluation n,

    [p, q, clip, c_in', w_0 .. w_{B-1}, W_00, W_01, .., W_{B-1,B-1}]          c_in' = c_in[n+1], 1 after the last

and one more row, the last, starts a sample: the same update with the noise in place of the network's output, w = init
and W = 0, so that s_j = init_j * noise. The masks say which states the update really has to touch; they are constants
of the compiled kernel, while the numbers may change under a captured graph. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

PICTURE_ALONE, WITH_NOISE = 1, 2  # what a masked update puts where the mask is 0: a x_0, or a x_0 + b eps


@dataclass(frozen=True)
class Update:
    """What one update reads and writes; bit j of a mask stands for state s_j."""

    reads: int
    writes: int
    clip: bool = False  # z = clamp(p s_0 + q out, -clip, clip) instead of z = out
    separate: bool = False  # also writes y_in = c_in' s_0 into a buffer of its own
    noise: int = 0  # the states to which the kernel adds noise that it makes itself
    keeps: int = 0  # with a mask PICTURE_ALONE or WITH_NOISE, else 0


def row_length(buffers: int) -> int:
    """Numbers in one coefficient row: 4 + B + B^2."""
    return 4 + buffers + buffers * buffers


def coefficients(
    *, init: ArrayLike, p: ArrayLike, q: ArrayLike, W: ArrayLike, w: ArrayLike, c_in: ArrayLike, clip: float | None
) -> NDArray[np.float32]:
    """The table of a lowered program, float32 [N + 1, 4 + B + B^2]; row N starts a sample from noise.

    init [B], p, q, c_in [N], W [N, B, B] and w [N, B] are float64 as in the program. This is the one cast to float32.
    """
    init, p, q, W, w, c_in = (np.asarray(array, dtype=np.float64) for array in (init, p, q, W, w, c_in))
    evaluations, buffers = w.shape
    rows = np.zeros((evaluations + 1, row_length(buffers)))
    rows[:-1, 0], rows[:-1, 1] = p, q
    rows[:-1, 2] = 0.0 if clip is None else clip
    rows[:, 3] = np.concatenate([c_in[1:], [1.0], c_in[:1]])
    rows[:-1, 4 : 4 + buffers], rows[-1, 4 : 4 + buffers] = w, init
    rows[:-1, 4 + buffers :] = W.reshape(evaluations, -1)
    return rows.astype(np.float32)


def noise_factors(V: ArrayLike) -> NDArray[np.float32]:
    """V [N, B] of a lowered program as the kernels read it: float32 [N + 1, B], nothing in the row of the start."""
    V = np.asarray(V, dtype=np.float64)
    return np.concatenate([V, np.zeros((1, V.shape[1]))]).astype(np.float32)


def kept_factors(a: ArrayLike, b: ArrayLike) -> NDArray[np.float32]:
    """(a, b) [N] each as the kernels read them: float32 [N + 1, 2], nothing in the row of the start."""
    both = np.stack([np.asarray(a, np.float64), np.asarray(b, np.float64)], axis=1)
    return np.concatenate([both, np.zeros((1, 2))]).astype(np.float32)


def updates(
    *,
    p: ArrayLike,
    W: ArrayLike,
    w: ArrayLike,
    clip: bool,
    separate: bool,
    V: ArrayLike | None = None,
    masked: bool = False,
) -> tuple[Update, ...]:
    """The N + 1 updates that belong to the rows of `coefficients`, each with the fewest reads and writes.

    A state is written when its row is not the identity and somebody reads it later: a later update, the network (s_0,
    unless `separate` gives the network a buffer of its own), or the caller (s_0 at the end). A state is read when a
    written row has a coefficient for it, or, for s_0, when the clip needs it. Going backwards settles both at once.
    masked: s_0 is another one after each update, since part of it is replaced; the last update needs no noise for that.
    """
    p, W, w = (np.asarray(array, dtype=np.float64) for array in (p, W, w))
    V = np.zeros_like(w) if V is None else np.asarray(V, dtype=np.float64)
    evaluations, buffers = w.shape
    unchanged = [(W[n] == np.eye(buffers)).all(axis=1) & (w[n] == 0) & (V[n] == 0) for n in range(evaluations)]
    for rows in unchanged:
        rows[0] &= not masked
    live = {0}
    found: list[Update] = []
    for n in reversed(range(evaluations)):
        feeds = separate and n < evaluations - 1
        writes = {j for j in live if not unchanged[n][j]}
        needed = sorted(writes | ({0} if feeds else set()))
        reads = {i for i in range(buffers) if any(W[n, j, i] != 0 for j in needed)}
        if clip and p[n] != 0 and any(w[n, j] != 0 for j in needed):
            reads.add(0)
        noisy = _mask({j for j in needed if V[n, j] != 0})
        keeps = 0 if not masked else PICTURE_ALONE if n == evaluations - 1 else WITH_NOISE
        found.append(Update(_mask(reads), _mask(writes), clip, feeds, noisy, keeps))
        live = (live - writes) | reads | (set() if separate else {0})
    start = Update(0, _mask(live), clip=False, separate=separate)
    return (*reversed(found), start)


def _mask(states: set[int]) -> int:
    return sum(1 << state for state in states)
