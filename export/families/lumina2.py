"""Lumina-Image 2: Lumina2Transformer2DModel, a flow.

The model takes prompts of different lengths; here they have a mask and one length. The length moves the places of the
picture's patches, as in the model. It is fed 1 - t and predicts x_0 - eps. Conditions: encoder_hidden_states and its
mask. The pipeline's guidance keeps the length of the conditional prediction in each row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from ...engine.contract.condition import Condition
from .family import AXES as AXES
from .family import MASKED_ALIASES, Beside, Config, Prompting, in_dtype_of, known, masked_parts, masked_text
from .family import channels as channels
from .family import learned_sigma as learned_sigma
from .family import patches as patches
from .family import shape as shape
from .parts.own_sigmas import scheduled as scheduled
from .parts.patched import from_last_patches, places, to_last_patches
from .parts.rotations import SelfAttention, Tables, with_processor

TOKENS = 256
BEFORE = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based "
    "on textual prompts or user prompts. <Prompt Start> "
)
ALIASES: Mapping[str, str] = MASKED_ALIASES
TIME_UNIT: float = 1e-3


def conditions(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    known(config, "patch_size", (2,))
    return masked_text(config["cap_feat_dim"], beside.tokens or TOKENS)


def prompting(config: Config, beside: Beside) -> Prompting | None:
    return Prompting(
        masked_parts("penultimate"), scale=4.0, keep="rows", masked=True, before=BEFORE, negative_before="", right=True
    )


def adapted(model: nn.Module, shape: tuple[int, ...], conditions: tuple[Condition, ...]) -> nn.Module:
    return AdaptedLumina2(model, shape)


@final
class AdaptedLumina2(nn.Module):
    """forward(x [B, C, H, W], t [B], **conditions) -> out [B, C, H, W]."""

    places: Tensor

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.model = with_processor(model, SelfAttention())
        self.rotations = Tables(self.model.rope_embedder.freqs_cis)
        self.register_buffer("places", places(shape[1] // 2, shape[2] // 2), persistent=False)

    def forward(
        self, x: Tensor, t: Tensor, /, *, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor
    ) -> Tensor:
        model: Any = self.model
        given = in_dtype_of(x, {"text": encoder_hidden_states})
        own = encoder_attention_mask > 0.5
        length = own.sum(1, keepdim=True)
        time, prompt = model.time_caption_embed(x, 1 - t, given["text"])
        # Places: of a prompt its tokens, of a picture the prompt's length, rows and columns.
        index = torch.arange(own.shape[1], device=x.device)
        at = nn.functional.pad((index * own)[..., None], (0, 2))
        told = self.rotations(at)
        count = self.places.shape[0]
        at = torch.cat((length.expand(-1, count)[..., None], self.places.expand(len(x), -1, -1)), -1)
        turned = self.rotations(at)
        for layer in model.context_refiner:
            prompt = layer(prompt, own, told)
        picture = model.x_embedder(to_last_patches(x))
        for layer in model.noise_refiner:
            picture = layer(picture, None, turned, time)
        # Both.
        joint = torch.cat((prompt, picture), 1)
        mask = nn.functional.pad(own, (0, count), value=True)
        for layer in model.layers:
            joint = layer(joint, mask, torch.cat((told, turned), 1), time)
        out = model.norm_out(joint, time)[:, own.shape[1] :]
        return -from_last_patches(out, x.shape[2], x.shape[3])
