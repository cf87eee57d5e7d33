"""Z-Image and Z-Image-Turbo: ZImageTransformer2DModel, a flow over patches of 2 x 2 latents.

The model takes lists of tensors of different lengths; here prompts have a mask and one length. As in the model, a
prompt fills up to a multiple of 32 tokens with a learned one, and its length moves the places of the picture's patches.
It is fed 1 - t and predicts x_0 - eps. Conditions: encoder_hidden_states and its mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from ...engine.contract.condition import Condition
from ...engine.errors import InputError
from .family import AXES as AXES
from .family import MASKED_ALIASES, Beside, Config, Prompting, in_dtype_of, masked_parts, masked_text
from .family import channels as channels
from .family import learned_sigma as learned_sigma
from .flux import patches as patches
from .parts.own_sigmas import scheduled as scheduled
from .parts.patched import from_last_patches, places, to_last_patches
from .parts.rotations import SelfAttention, Tables, with_processor

TOKENS = 512
MULTIPLE = 32  # of the lengths of a prompt and of a picture
ALIASES: Mapping[str, str] = MASKED_ALIASES
TIME_UNIT: float = 1e-3


def shape(config: Config) -> tuple[int, ...] | None:
    return channels(config), 128, 128  # the pipeline's 1024 pixels


def conditions(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    if (2, 1) not in zip(config["all_patch_size"], config["all_f_patch_size"], strict=True):
        raise InputError(f"all_patch_size {config['all_patch_size']} has no 2, which is the pipeline's")
    return masked_text(config["cap_feat_dim"], beside.tokens or TOKENS)


def prompting(config: Config, beside: Beside) -> Prompting | None:
    return Prompting(masked_parts("penultimate"), scale=5.0, offset=1.0, masked=True, thinking=True)


def adapted(model: nn.Module, shape: tuple[int, ...], conditions: tuple[Condition, ...]) -> nn.Module:
    return AdaptedZImage(model, shape)


@final
class AdaptedZImage(nn.Module):
    """forward(x [B, C, H, W], t [B], **conditions) -> out [B, C, H, W]."""

    places: Tensor

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.model = with_processor(model, SelfAttention())
        rope = self.model.rope_embedder
        self.rotations = Tables(rope.precompute_freqs_cis(rope.axes_dims, rope.axes_lens, rope.theta))
        found = places(shape[1] // 2, shape[2] // 2)
        self.register_buffer("places", found, persistent=False)

    def forward(
        self, x: Tensor, t: Tensor, /, *, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor
    ) -> Tensor:
        model: Any = self.model
        given = in_dtype_of(x, {"text": encoder_hidden_states})
        own = encoder_attention_mask > 0.5
        tokens = own.shape[1]
        whole = -(-own.sum(1, keepdim=True) // MULTIPLE) * MULTIPLE  # [B, 1]
        index = torch.arange(tokens, device=x.device)
        used = index < whole
        time = model.t_embedder((1 - t) * model.t_scale).type_as(x)
        # The picture: its patches, then learned ones at place 0.
        picture = model.all_x_embedder["2-1"](to_last_patches(x))
        count = picture.shape[1]
        extra = -count % MULTIPLE
        pad = model.x_pad_token.to(picture).expand(len(x), extra, -1)
        picture = torch.cat((picture, pad), 1)
        frame = (whole + 1).expand(-1, count)[..., None]
        at = torch.cat((frame, self.places.expand(len(x), -1, -1)), -1)
        turned = self.rotations(nn.functional.pad(at, (0, 0, 0, extra)))
        for layer in model.noise_refiner:
            picture = layer(picture, None, turned, time)
        # The prompt: its tokens, then learned ones up to a whole multiple.
        prompt = torch.where(own[..., None], model.cap_embedder(given["text"]), model.cap_pad_token.to(x.dtype))
        at = nn.functional.pad(((index + 1) * used)[..., None], (0, 2))
        told = self.rotations(at)
        for layer in model.context_refiner:
            prompt = layer(prompt, used, told)
        # Both.
        joint = torch.cat((picture, prompt), 1)
        mask = nn.functional.pad(used, (picture.shape[1], 0), value=True)
        for layer in model.layers:
            joint = layer(joint, mask, torch.cat((turned, told), 1), time)
        out = model.all_final_layer["2-1"](joint, c=time)[:, :count]
        return -from_last_patches(out, x.shape[2], x.shape[3])
