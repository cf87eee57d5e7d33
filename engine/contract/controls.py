"""The condition that stands for the picture of a ControlNet: the picture itself, or the latents of it."""

from __future__ import annotations

from typing import Any

from .condition import Condition
from .contract import Contract

CONTROL_IMAGE, CONTROL_LATENTS = "control_image", "control_latents"


def control_condition(contract: Contract) -> Condition | None:
    """None for a network without a ControlNet."""
    return next((one for one in contract.conditions if one.name in (CONTROL_IMAGE, CONTROL_LATENTS)), None)


def is_control_picture(condition: Condition, given: Any) -> bool:
    """Whether the array `given` for this condition is a picture that is to be encoded, no latents."""
    shape = tuple(getattr(given, "shape", ()))
    return condition.name == CONTROL_LATENTS and len(shape) > 2 and shape[-len(condition.shape) :] != condition.shape
