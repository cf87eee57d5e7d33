"""HunyuanDiT: HunyuanDiT2DModel, eps or v at times 0..T-1.

x is `hidden_states`. Conditions: the features and masks of BERT and of T5; of older models also the picture's sizes
(original, target, crop) and a style.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from ...engine.contract.condition import Condition
from .family import AXES as AXES
from .family import TIME_UNIT as TIME_UNIT
from .family import Beside, Config, Part, Prompting, in_dtype_of
from .family import channels as channels
from .family import patches as patches
from .family import scheduled as scheduled
from .family import shape as shape

SIDE = 64  # of the latents of 512 pixels, which rotary embeddings are measured by
ALIASES: Mapping[str, str] = {
    "encoder_hidden_states": "prompt_embeds",
    "text_embedding_mask": "prompt_attention_mask",
    "encoder_hidden_states_t5": "prompt_embeds_2",
    "text_embedding_mask_t5": "prompt_attention_mask_2",
}


def learned_sigma(config: Config) -> bool:
    return bool(config.get("learn_sigma", True))


def conditions(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    tokens, tokens_t5 = int(config.get("text_len") or 77), int(config.get("text_len_t5") or 256)
    found = [
        Condition("encoder_hidden_states", "float32", (tokens, int(config["cross_attention_dim"]))),
        Condition("text_embedding_mask", "float32", (tokens,), 1.0),
        Condition("encoder_hidden_states_t5", "float32", (tokens_t5, int(config["cross_attention_dim_t5"]))),
        Condition("text_embedding_mask_t5", "float32", (tokens_t5,), 1.0),
    ]
    if config.get("use_style_cond_and_image_meta_size", True):
        pixels = [size * beside.pixels for size in shape[1:]]
        found.append(Condition("image_meta_size", "float32", (6,), (1024, 1024, *pixels, 0, 0)))
    return tuple(found)


def prompting(config: Config, beside: Beside) -> Prompting | None:
    return Prompting(
        (
            Part("text_encoder", "encoder_hidden_states", "last"),
            Part("text_encoder", "text_embedding_mask", "mask"),
            Part("text_encoder_2", "encoder_hidden_states_t5", "last"),
            Part("text_encoder_2", "text_embedding_mask_t5", "mask"),
        ),
        scale=5.0,
        masked=True,
    )


def adapted(model: nn.Module, shape: tuple[int, ...], conditions: tuple[Condition, ...]) -> nn.Module:
    return AdaptedHunyuanDit(model, shape)


@final
class AdaptedHunyuanDit(nn.Module):
    """forward(x [B, C, H, W], t [B], **conditions) -> out [B, 2 C, H, W]."""

    def __init__(self, model: Any, shape: tuple[int, ...]) -> None:
        from diffusers.models.embeddings import get_2d_rotary_pos_embed
        from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

        super().__init__()
        self.model = model
        side = int(model.config.patch_size)
        grid = (shape[1] // side, shape[2] // side)
        region = get_resize_crop_region_for_grid(grid, SIDE // side)
        width = model.inner_dim // model.num_heads
        cosines, sines = get_2d_rotary_pos_embed(width, region, grid, output_type="pt")
        self.rotations = (cosines, sines)  # no buffers: they stay float32

    def forward(self, x: Tensor, t: Tensor, /, **conditions: Tensor) -> Tensor:
        given = in_dtype_of(x, conditions)
        return self.model(
            x,
            t.to(x.dtype),
            **given,
            style=torch.zeros(len(x), dtype=torch.int64, device=x.device),
            image_rotary_emb=tuple(one.to(x.device) for one in self.rotations),
            return_dict=False,
        )[0]
