"""PixArt-alpha and PixArt-Sigma: PixArtTransformer2DModel.

x is `hidden_states`, times are 0..T-1. Conditions: encoder_hidden_states and its mask; of models for 1024 pixels also
resolution and aspect_ratio.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import Tensor, nn

from ...engine.condition import Condition
from ..convention import Convention
from .family import Beside, Config, Part, Prompting, in_dtype_of, square, text

TOKENS = {"PixArtSigmaPipeline": 300, "PixArtAlphaPipeline": 120}
ALIASES: Mapping[str, str] = {
    "encoder_hidden_states": "prompt_embeds",
    "encoder_attention_mask": "prompt_attention_mask",
}
TIME_UNIT: float = 1.0
NESTED = ("resolution", "aspect_ratio")  # inside added_cond_kwargs


def shape(config: Config) -> tuple[int, ...] | None:
    return square(config)


def channels(config: Config) -> int:
    return int(config["in_channels"])


def patches(config: Config, shape: tuple[int, ...]) -> int:
    side = int(config.get("patch_size") or 1)
    return (shape[1] // side) * (shape[2] // side)


def conditions(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    tokens = beside.tokens or TOKENS.get(beside.pipeline, TOKENS["PixArtAlphaPipeline"])
    found = [
        text(config["caption_channels"], tokens),
        Condition("encoder_attention_mask", "float32", (tokens,), 1.0),
    ]
    sized = config.get("use_additional_conditions")
    if config["sample_size"] == 128 if sized is None else sized:
        height, width = (size * beside.pixels for size in shape[1:])
        found.append(Condition("resolution", "float32", (2,), (height, width)))
        found.append(Condition("aspect_ratio", "float32", (1,), height / width))
    return tuple(found)


def prompting(config: Config) -> Prompting | None:
    return Prompting(
        (
            Part("text_encoder", "encoder_hidden_states", "last"),
            Part("text_encoder", "encoder_attention_mask", "mask"),
        ),
        scale=4.5,
        plain=True,
        masked=True,
    )


def adapted(model: nn.Module, shape: tuple[int, ...], conditions: tuple[Condition, ...]) -> nn.Module:
    return AdaptedPixart(model)


def scheduled(convention: Convention) -> Convention:
    return convention


@final
class AdaptedPixart(nn.Module):
    """forward(x [B, C, H, W], t [B], **conditions) -> out [B, C or 2 C, H, W]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, /, **conditions: Tensor) -> Tensor:
        given = in_dtype_of(x, conditions)
        nested = {name: given.pop(name) for name in NESTED if name in given}
        if nested:
            given["added_cond_kwargs"] = nested
        return self.model(hidden_states=x, timestep=t, **given, return_dict=False)[0]
