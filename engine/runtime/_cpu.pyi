from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

def fill(z: NDArray[np.float32], seeds: NDArray[np.uint64], draw: int = 0) -> None: ...
def combine(update: NDArray[np.float32], source: NDArray[np.float32], target: NDArray[np.float32]) -> bool: ...
def walk(
    evaluations: tuple[Callable[[], object], ...],
    matrices: tuple[NDArray[np.float32], ...],
    time: NDArray[Any],
    times: NDArray[Any],
    update: NDArray[np.float32],
    result: NDArray[np.float32],
    reached: NDArray[np.int64],
    V: NDArray[np.float32] | None = None,
    seeds: NDArray[np.uint64] | None = None,
    size: int = 0,
    *kept: NDArray[np.float32] | NDArray[np.uint8],  # known, picture, noise, mask
) -> bool: ...
