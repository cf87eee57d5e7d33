"""DDIM that clips x0 and keeps the network's own eps, as diffusers' DDIMScheduler does without
`use_clipped_model_output`.

    x_t = alpha_t clamp(x_0) + sigma_t eps,     eps that of x_s and the network's output, before anything is clipped

Elsewhere eps follows the clipped x_0, so that x_s = alpha_s x_0 + sigma_s eps still holds, and an update is one of
states and x_0 alone. Here the output enters twice, clipped and as it is, which is what a program's U is for.
"""

from __future__ import annotations

import numpy as np

from .basis import basis_row, convert, x_row
from .schedule import Float64s, Schedule

ROUNDING = 1e-12  # of eps in the step to the clean point, where its factor is an exact zero


def fold_own_eps(
    W: Float64s, w: Float64s, times: Float64s, basis: str, prediction: str, schedule: Schedule, sigma_data: float
) -> tuple[Float64s, Float64s, Float64s]:
    """(p [N], q [N], U [N, 1]) of a program of one state whose W and w, in place, then are of s_0 and the clipped x_0.

    s_0' = W s_0 + w d with s_0 and d as combinations of x_0 and eps is A x_0 + E eps; then w = A, and E eps is
    E (c_s s_0 + c_out out). Raises InputError where the output does not determine eps.
    """
    p, q, U = np.zeros(len(times)), np.zeros(len(times)), np.zeros_like(w)
    for n, t in enumerate(times):
        of_state, of_output = x_row(t, schedule), basis_row(basis, t, schedule)
        A, E = (W[n, 0, 0] * of_state[i] + w[n, 0] * of_output[i] for i in range(2))
        E = 0.0 if abs(E) <= ROUNDING * abs(A) else E
        p[n], q[n] = convert("x0", prediction, t, schedule, sigma_data)
        c_state, c_out = convert("eps", prediction, t, schedule, sigma_data) if E else (0.0, 0.0)
        W[n, 0, 0], w[n, 0], U[n, 0] = E * c_state, A, E * c_out
    return p, q, U
