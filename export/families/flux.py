"""FLUX.1: FluxTransformer2DModel, a flow over patches of 2 x 2 latents.

x is `hidden_states` as [B, H/2 W/2, 4 C], with the places of its patches; the model is fed the flow's time itself.
Conditions: encoder_hidden_states, pooled_projections, and guidance of the distilled model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from ...engine.contract.condition import Condition
from .family import AXES as AXES
from .family import Beside, Config, Part, Prompting, in_dtype_of, text_and_pooled
from .family import learned_sigma as learned_sigma
from .parts.own_sigmas import scheduled as scheduled
from .parts.patched import from_patches, places, to_patches

TOKENS = 512
GUIDANCE = "guidance"
ALIASES: Mapping[str, str] = {
    "encoder_hidden_states": "prompt_embeds",
    "pooled_projections": "pooled_prompt_embeds",
    GUIDANCE: "guidance_scale",
}
TIME_UNIT: float = 1e-3


def shape(config: Config) -> tuple[int, ...] | None:
    return channels(config), 128, 128  # the pipeline's 1024 pixels


def channels(config: Config) -> int:
    return int(config["in_channels"]) // 4


def patches(config: Config, shape: tuple[int, ...]) -> int:
    return (shape[1] // 2) * (shape[2] // 2)


def conditions(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    return (
        *text_and_pooled(config, beside, TOKENS),
        *((Condition(GUIDANCE, "float32", default=3.5),) if config["guidance_embeds"] else ()),
    )


def prompting(config: Config, beside: Beside) -> Prompting | None:
    return Prompting(
        (
            Part("text_encoder_2", "encoder_hidden_states", "last"),
            Part("text_encoder", "pooled_projections", "pooled"),
        )
    )


def adapted(model: nn.Module, shape: tuple[int, ...], conditions: tuple[Condition, ...]) -> nn.Module:
    tokens = next(one.shape[0] for one in conditions if one.name == "encoder_hidden_states")
    return AdaptedFlux(model, shape, tokens)


@final
class AdaptedFlux(nn.Module):
    """forward(x [B, C, H, W], t [B], **conditions) -> out [B, C, H, W]."""

    img_ids: Tensor
    txt_ids: Tensor

    def __init__(self, model: nn.Module, shape: tuple[int, ...], tokens: int) -> None:
        super().__init__()
        self.model = model
        # Rows and columns of the patches; a prompt's tokens all stand at 0.
        found = places(shape[1] // 2, shape[2] // 2).float()
        self.register_buffer("img_ids", nn.functional.pad(found, (1, 0)), persistent=False)
        self.register_buffer("txt_ids", torch.zeros(tokens, 3), persistent=False)

    def forward(self, x: Tensor, t: Tensor, /, **conditions: Tensor) -> Tensor:
        at = {"img_ids": self.img_ids, "txt_ids": self.txt_ids}
        given = in_dtype_of(x, conditions)
        out = self.model(hidden_states=to_patches(x), timestep=t, **given, **at, return_dict=False)[0]
        return from_patches(out, x.shape[2], x.shape[3])
