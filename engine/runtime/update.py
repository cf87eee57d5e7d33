"""The update on a CPU: state j after evaluation n = sum_i W_n[j, i] s_i + w_n[j] z, one small matrix product.

`_cpu.cpp` computes it in one pass, every element on its own, so a sample has the same bits in any batch. Where it was
not compiled it is NumPy's product. Both look at the network's output: what is not finite must not pass unreported.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

try:
    from ._cpu import combine as combine_compiled
except ImportError:  # there was no C++ compiler when pfdiff was installed
    combine_compiled = None

Matrix = NDArray[np.float32]

# OpenBLAS splits a product over threads from about 2^18 multiplications. Beside the network's own threads that costs
# more than it brings: 8 ms in place of 0.7 ms for [2, 3] @ [3, 786432] on two busy cores. Blocks stay below.
MULTIPLICATIONS = 200_000


def combine(update: Matrix, source: Matrix, target: Matrix) -> bool:
    """`update` [m, k] @ `source` [k, elements] into `target` [m, elements]; whether source's last row is finite.

    All float32 with contiguous rows; `target` is other memory than `source`. Raises ValueError when shapes do not fit.
    """
    return (combine_compiled or combine_numpy)(update, source, target)


def combine_numpy(update: Matrix, source: Matrix, target: Matrix) -> bool:
    """What `_cpu.cpp` computes, up to rounding."""
    width = max(1, MULTIPLICATIONS // update.size)
    with np.errstate(all="ignore"):  # what is not finite is reported by the result
        for start in range(0, source.shape[1], width):
            columns = slice(start, start + width)
            np.matmul(update, source[:, columns], out=target[:, columns])
    return all_finite(source[-1])


def all_finite(values: Matrix) -> bool:
    """Whether no value [elements] is NaN or infinite."""
    # The sum is finite unless something in it is not, or, with no harm done, it overflows.
    with np.errstate(all="ignore"):
        return math.isfinite(np.add.reduce(values)) or bool(np.isfinite(values).all())
