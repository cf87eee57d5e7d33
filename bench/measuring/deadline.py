"""The time that is left to a part of `make gpu`, and what a network takes of it: a guess, no measurement."""

from __future__ import annotations

import os
import time

import pytest

UNTIL = "PFDIFF_GPU_UNTIL"  # in the environment, seconds since 1970: what is not done then is interrupted
SECONDS = {"fashion": 4, "policy": 4, "cifar": 10, "latents": 40}  # to load, search, capture and time one row
COMPILE_SECONDS = {"fashion": 25, "policy": 20, "cifar": 60, "latents": 240}


def require(network: str, *, compiled: bool = False) -> None:
    """Skip the test if too little time is left for a row of `network`."""
    needed = SECONDS[network] + (COMPILE_SECONDS[network] if compiled else 0)
    left = float(os.environ.get(UNTIL, "inf")) - time.time()
    if left < needed:
        pytest.skip(f"no time left: about {needed} s are needed, {left:.0f} s remain")
