"""Stable Diffusion 3: SD3Transformer2DModel, a flow.

x is `hidden_states`, the model is fed T times the flow's time. Conditions: encoder_hidden_states, pooled_projections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import Tensor, nn

from ...engine.condition import Condition
from ..convention import Convention
from .family import Beside, Config, Part, Prompting, in_dtype_of, square, text

TOKENS = 333  # 77 of CLIP and 256 of T5
ALIASES: Mapping[str, str] = {
    "encoder_hidden_states": "prompt_embeds",
    "pooled_projections": "pooled_prompt_embeds",
}
TIME_UNIT: float = 1.0


def shape(config: Config) -> tuple[int, ...] | None:
    return square(config)


def channels(config: Config) -> int:
    return int(config["in_channels"])


def patches(config: Config, shape: tuple[int, ...]) -> int:
    side = int(config.get("patch_size") or 1)
    return (shape[1] // side) * (shape[2] // side)


def conditions(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    return (
        text(config["joint_attention_dim"], beside.tokens or TOKENS),
        Condition("pooled_projections", "float32", (config["pooled_projection_dim"],)),
    )


def prompting(config: Config) -> Prompting | None:
    return Prompting(
        (
            Part("text_encoder", "encoder_hidden_states", "penultimate"),
            Part("text_encoder_2", "encoder_hidden_states", "penultimate"),
            Part("text_encoder_3", "encoder_hidden_states", "last", block=1),
            Part("text_encoder", "pooled_projections", "projected"),
            Part("text_encoder_2", "pooled_projections", "projected"),
        ),
        scale=7.0,
    )


def adapted(model: nn.Module, shape: tuple[int, ...], conditions: tuple[Condition, ...]) -> nn.Module:
    return AdaptedSd3(model)


def scheduled(convention: Convention) -> Convention:
    return convention


@final
class AdaptedSd3(nn.Module):
    """forward(x [B, C, H, W], t [B], **conditions) -> out [B, C, H, W]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, /, **conditions: Tensor) -> Tensor:
        return self.model(hidden_states=x, timestep=t, **in_dtype_of(x, conditions), return_dict=False)[0]
