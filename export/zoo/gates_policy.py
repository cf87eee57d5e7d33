"""The shipped policy: 16 positions of the gates task from two observations, 1.4 M parameters.

Both are scaled from [0, 1] m to [-1, 1]. The first of the 16 actions is of the tick of the first observation, so number
1 to 8 are carried out, as Diffusion Policy does (Chi et al., arXiv 2303.04137).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from ...engine.contract.condition import Condition
from ...engine.contract.policy import OBSERVATION as WORD
from ..described import Described
from ..policies.networks import ObservedUnet
from ..policies.options import Policy
from ..policies.scaling import Scaled, Scaling
from ..policies.unet1d import ConditionalUnet1d, UnetOptions
from ..sources.diffusers_config import read_config
from .gates import ACTION, OBSERVATION

OBSERVED, HORIZON, DONE = 2, 16, 8
OPTIONS = UnetOptions(ACTION, OBSERVED * OBSERVATION, widths=(64, 128, 128), kernel=3, embedding=64)
# As LeRobot's policies have it, but for what is predicted.
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 100,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "sample",
    "clip_sample": True,
}
SCHEDULE = "cosine:100?beta_min=0.0&beta_max=0.999"


def normalised(metres: np.ndarray) -> np.ndarray:
    """[0, 1] m to [-1, 1]."""
    return 2 * metres - 1


def described(weights: Mapping[str, Tensor]) -> Described:
    """The policy with these weights. Raises RuntimeError when they are others."""
    unet = ConditionalUnet1d(OPTIONS)
    unet.load_state_dict({name: value.float() for name, value in weights.items()})
    half, two, none = np.full((), 0.5), np.full((), 2.0), np.zeros(())
    convention = read_config(SCHEDULER)
    return Described(
        ObservedUnet(unet, Scaled(Scaling(half, two, none))).eval(),
        "gates",
        (HORIZON, ACTION),
        convention.schedule,
        convention.prediction,
        {WORD: Condition(WORD, "float32", (OBSERVED, OBSERVATION))},
        convention=convention,
        policy=Policy({WORD: (OBSERVED, OBSERVATION)}, scale=0.5, offset=0.5, first=OBSERVED - 1, count=DONE),
    )
