"""Chroma: ChromaTransformer2DModel, a flow over patches of 2 x 2 latents, FLUX without its pooled prompt.

Conditions: encoder_hidden_states and its mask, of a prompt's tokens and the first one after them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from ...engine.contract.condition import Condition
from ..mirrored import mirrored
from .family import AXES as AXES
from .family import Beside, Config, Prompting, in_dtype_of, masked_parts, masked_text
from .family import learned_sigma as learned_sigma
from .flux import channels as channels
from .flux import patches as patches
from .flux import shape as shape
from .parts.own_sigmas import scheduled as scheduled
from .parts.patched import from_patches, places, to_patches

TOKENS = 512
ALIASES: Mapping[str, str] = {
    "encoder_hidden_states": "prompt_embeds",
    "attention_mask": "prompt_attention_mask",
}
TIME_UNIT: float = 1e-3


def conditions(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    return masked_text(config["joint_attention_dim"], beside.tokens or TOKENS, "attention_mask")


def prompting(config: Config, beside: Beside) -> Prompting | None:
    return Prompting(masked_parts("last", "attention_mask", "mask and one"), scale=5.0, masked=True)


def adapted(model: nn.Module, shape: tuple[int, ...], conditions: tuple[Condition, ...]) -> nn.Module:
    return AdaptedChroma(model, shape, conditions[0].shape[0])


@final
class TimeEmbedding(nn.Module):
    """The model's own, for a batch of any size."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.own = own

    def forward(self, t: Tensor) -> Tensor:
        own = self.own
        told = torch.cat((own.time_proj(t).to(t.dtype), own.guidance_proj(torch.zeros_like(t)).to(t.dtype)), 1)
        indices = own.mod_proj.to(t.dtype).expand(len(t), -1, -1)
        return torch.cat((told[:, None].expand(-1, indices.shape[1], -1), indices), -1)


@final
class AdaptedChroma(nn.Module):
    """forward(x [B, C, H, W], t [B], **conditions) -> out [B, C, H, W]."""

    img_ids: Tensor
    txt_ids: Tensor

    def __init__(self, model: nn.Module, shape: tuple[int, ...], tokens: int) -> None:
        super().__init__()
        self.model: Any = mirrored(model)
        self.model.time_text_embed = TimeEmbedding(self.model.time_text_embed)
        found = nn.functional.pad(places(shape[1] // 2, shape[2] // 2).float(), (1, 0))
        self.register_buffer("img_ids", found, persistent=False)
        self.register_buffer("txt_ids", torch.zeros(tokens, 3), persistent=False)

    def forward(self, x: Tensor, t: Tensor, /, *, encoder_hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        sequence = to_patches(x)
        out = self.model(
            hidden_states=sequence,
            timestep=t,
            **in_dtype_of(x, {"encoder_hidden_states": encoder_hidden_states}),
            img_ids=self.img_ids,
            txt_ids=self.txt_ids,
            attention_mask=nn.functional.pad(attention_mask.to(x.dtype), (0, sequence.shape[1]), value=1.0),
            return_dict=False,
        )[0]
        return from_patches(out, x.shape[2], x.shape[3])
