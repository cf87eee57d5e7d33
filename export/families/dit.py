"""DiT: DiTTransformer2DModel, class labels as the only condition.

x is `hidden_states`, times are 0..T-1; the last label means no class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import Tensor, nn

from ...engine.condition import Condition
from ..convention import Convention
from .family import Beside, Config, Prompting, in_dtype_of, square

ALIASES: Mapping[str, str] = {}
TIME_UNIT: float = 1.0


def shape(config: Config) -> tuple[int, ...] | None:
    return square(config)


def channels(config: Config) -> int:
    return int(config["in_channels"])


def patches(config: Config, shape: tuple[int, ...]) -> int:
    side = int(config.get("patch_size") or 1)
    return (shape[1] // side) * (shape[2] // side)


def conditions(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    return (Condition("class_labels", "int64", low=0, high=int(config["num_embeds_ada_norm"])),)


def prompting(config: Config) -> Prompting | None:
    return None


def adapted(model: nn.Module, shape: tuple[int, ...], conditions: tuple[Condition, ...]) -> nn.Module:
    return AdaptedDit(model)


def scheduled(convention: Convention) -> Convention:
    return convention


@final
class AdaptedDit(nn.Module):
    """forward(x [B, C, H, W], t [B], class_labels [B]) -> out [B, C or 2 C, H, W]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, /, **conditions: Tensor) -> Tensor:
        return self.model(hidden_states=x, timestep=t, **in_dtype_of(x, conditions), return_dict=False)[0]
