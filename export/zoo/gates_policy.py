"""The shipped policy: 16 positions of the gates task from two observations, 1.3 M parameters.

Both are scaled from [0, 1] m to [-1, 1]. Of 16 actions the first is of the tick of the first observation, so number 1 to
8 are carried out.
"""

from __future__ import annotations

import numpy as np

from ..policies.unet1d import UnetOptions
from .gates import ACTION, OBSERVATION

OBSERVED, HORIZON, DONE = 2, 16, 8
SCHEDULE = "cosine:100?beta_min=0.0&beta_max=0.999"
OPTIONS = UnetOptions(ACTION, OBSERVED * OBSERVATION, widths=(64, 128, 128), kernel=3, embedding=64)


def normalised(metres: np.ndarray) -> np.ndarray:
    """[0, 1] m to [-1, 1]."""
    return 2 * metres - 1
