"""Sound: UNet1DModel of Dance Diffusion, samples [channels, length] without a prompt.

x is `sample`. Times are those of the scheduler.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ...engine.contract.condition import Condition
from .family import TIME_UNIT as TIME_UNIT
from .family import Adapted, Beside, Config, Prompting
from .family import channels as channels
from .family import learned_sigma as learned_sigma
from .family import scheduled as scheduled

AXES: tuple[str, ...] = ("length",)
ALIASES: Mapping[str, str] = {}


def shape(config: Config) -> tuple[int, ...] | None:
    return channels(config), int(config["sample_size"])


def patches(config: Config, shape: tuple[int, ...]) -> int:
    return shape[1]


def conditions(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    return ()


def prompting(config: Config, beside: Beside) -> Prompting | None:
    return None


def adapted(model: nn.Module, shape: tuple[int, ...], conditions: tuple[Condition, ...]) -> nn.Module:
    return Adapted(model, "sample")
