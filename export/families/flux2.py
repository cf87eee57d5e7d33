"""FLUX.2 [klein]: Flux2Transformer2DModel, a flow over latents whose channels are patches of 2 x 2 already.

x is `hidden_states` as [B, H W, C]; the model is fed the flow's time itself. Condition: encoder_hidden_states, three
hidden states of Qwen3 side by side; guidance of models that are distilled for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from ...engine.contract.condition import Condition
from ...engine.errors import InputError
from ..convention import Convention
from .family import AXES as AXES
from .family import Beside, Config, Part, Prompting, in_dtype_of, text
from .family import channels as channels
from .family import learned_sigma as learned_sigma
from .parts.own_sigmas import scheduled as own_sigmas
from .parts.patched import places

TOKENS = 512
ALIASES: Mapping[str, str] = {"encoder_hidden_states": "prompt_embeds", "guidance": "guidance_scale"}
TIME_UNIT: float = 1e-3


def shape(config: Config) -> tuple[int, ...] | None:
    return channels(config), 64, 64  # the pipeline's 1024 pixels


def patches(config: Config, shape: tuple[int, ...]) -> int:
    return shape[1] * shape[2]


def conditions(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    guided = config.get("guidance_embeds", True)
    return (
        text(config["joint_attention_dim"], beside.tokens or TOKENS),
        *((Condition("guidance", "float32", default=4.0),) if guided else ()),
    )


def prompting(config: Config, beside: Beside) -> Prompting | None:
    if beside.pipeline not in ("", "Flux2KleinPipeline"):
        raise InputError(
            f"the text encoder of {beside.pipeline} is not known here, only that of Flux2KleinPipeline; leave it out "
            "(encoders=False, --no-encoders) and give prompt_embeds"
        )
    scale = None if beside.options.get("is_distilled") else 4.0
    part = Part("text_encoder", "encoder_hidden_states", "hidden:9,18,27")
    return Prompting((part,), scale=scale, masked=True, thinking=False)


def adapted(model: nn.Module, shape: tuple[int, ...], conditions: tuple[Condition, ...]) -> nn.Module:
    tokens = next(one.shape[0] for one in conditions if one.name == "encoder_hidden_states")
    return AdaptedFlux2(model, shape, tokens)


def scheduled(convention: Convention, patches: int) -> Convention:
    found = own_sigmas(convention, patches)
    return replace(found, empirical=patches) if found.dynamic else found


@final
class AdaptedFlux2(nn.Module):
    """forward(x [B, C, H, W], t [B], **conditions) -> out [B, C, H, W]."""

    img_ids: Tensor
    txt_ids: Tensor

    def __init__(self, model: nn.Module, shape: tuple[int, ...], tokens: int) -> None:
        super().__init__()
        self.model = model
        # (time, row, column, token): of a picture rows and columns, of a prompt its tokens.
        found = nn.functional.pad(places(shape[1], shape[2]), (1, 1))
        self.register_buffer("img_ids", found, persistent=False)
        self.register_buffer("txt_ids", nn.functional.pad(torch.arange(tokens)[:, None], (3, 0)), persistent=False)

    def forward(self, x: Tensor, t: Tensor, /, **conditions: Tensor) -> Tensor:
        height, width = x.shape[2:]
        given = in_dtype_of(x, conditions)
        at = {"img_ids": self.img_ids, "txt_ids": self.txt_ids}
        sequence = x.flatten(2).transpose(1, 2)
        out = self.model(hidden_states=sequence, timestep=t, **given, **at, return_dict=False)[0]
        return out.transpose(1, 2).unflatten(2, (height, width))
