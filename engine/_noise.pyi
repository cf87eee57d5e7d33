import numpy as np
from numpy.typing import NDArray

def fill(z: NDArray[np.float32], seeds: NDArray[np.uint64]) -> None: ...
