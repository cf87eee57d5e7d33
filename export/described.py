"""A module that says itself what it is: a shipped network, a diffusers model, a pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from ..engine.contract import Condition

if TYPE_CHECKING:
    from torch import nn

    from .sources.diffusers_config import Convention


@final
@dataclass(frozen=True)
class Known:
    """What `Network` is told otherwise; each word means what it means there.

    convention: of the scheduler that came with it, whose times, clip and end are the network's own then.
    """

    module: nn.Module
    name: str
    shape: tuple[int, ...]
    schedule: str
    prediction: str
    conditions: tuple[Condition, ...] = ()
    time_scale: float = 1.0
    learned_sigma: bool = False
    sigma_data: float = 0.5
    data_range: tuple[float, float] = (-1.0, 1.0)
    decoder: nn.Module | None = None
    convention: Convention | None = None
