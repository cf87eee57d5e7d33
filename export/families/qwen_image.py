"""Qwen-Image: QwenImageTransformer2DModel, a flow over patches of 2 x 2 latents.

x is `hidden_states` as [B, H/2 W/2, 4 C]; the model is fed the flow's time itself. Conditions: encoder_hidden_states
and its mask. The pipeline's guidance keeps the length of the conditional prediction in each patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from ...engine.contract.condition import Condition
from ...engine.errors import InputError
from .family import AXES as AXES
from .family import Beside, Config, Prompting, in_dtype_of, masked_parts, masked_text
from .flux import channels as channels
from .flux import patches as patches
from .flux import shape as shape
from .parts.own_sigmas import scheduled as scheduled
from .parts.patched import from_patches, to_patches
from .parts.rotations import JointAttention, pairs, with_processor

TOKENS = 512
BEFORE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n"
DROPPED = 34  # tokens of BEFORE, as the pipeline counts them
MASK = "encoder_hidden_states_mask"
ALIASES: Mapping[str, str] = {
    "encoder_hidden_states": "prompt_embeds",
    MASK: "prompt_embeds_mask",
}
TIME_UNIT: float = 1e-3


def learned_sigma(config: Config) -> bool:
    return False


def conditions(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    for key in ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"):
        if config.get(key):
            raise InputError(f"{key} is set, an editing or layered model, which is not known here; give another")
    return masked_text(config["joint_attention_dim"], beside.tokens or TOKENS, MASK)


def prompting(config: Config, beside: Beside) -> Prompting | None:
    parts = masked_parts("last", MASK)
    return Prompting(
        parts, scale=4.0, keep="patches", masked=True, before=BEFORE, after=AFTER, dropped=DROPPED, right=True
    )


def adapted(model: nn.Module, shape: tuple[int, ...], conditions: tuple[Condition, ...]) -> nn.Module:
    return AdaptedQwenImage(model, shape, conditions[0].shape[0])


@final
class Rotations(nn.Module):
    """In place of the model's own: those of the picture's patches and of the prompt's tokens, [1, n, d / 2, 2] each."""

    def __init__(self, picture: Tensor, prompt: Tensor) -> None:
        super().__init__()
        self.tables = (picture[None], prompt[None])  # no buffers: they stay float32

    def forward(self, *_: object, device: torch.device, **__: object) -> tuple[Tensor, Tensor]:
        picture, prompt = (one.to(device) for one in self.tables)
        return picture, prompt


@final
class AdaptedQwenImage(nn.Module):
    """forward(x [B, C, H, W], t [B], **conditions) -> out [B, C, H, W]."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...], tokens: int) -> None:
        super().__init__()
        self.model = with_processor(model, JointAttention())
        found = self.model.pos_embed([(1, shape[1] // 2, shape[2] // 2)], max_txt_seq_len=tokens)
        self.model.pos_embed = Rotations(*map(pairs, found))

    def forward(
        self, x: Tensor, t: Tensor, /, *, encoder_hidden_states: Tensor, encoder_hidden_states_mask: Tensor
    ) -> Tensor:
        height, width = x.shape[2:]
        out = self.model(
            hidden_states=to_patches(x),
            timestep=t,
            **in_dtype_of(x, {"encoder_hidden_states": encoder_hidden_states}),
            encoder_hidden_states_mask=encoder_hidden_states_mask > 0.5,
            img_shapes=[[(1, height // 2, width // 2)]],
            return_dict=False,
        )[0]
        return from_patches(out, height, width)
