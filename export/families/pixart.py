"""PixArt-alpha and PixArt-Sigma: PixArtTransformer2DModel.

x is `hidden_states`, times are 0..T-1. Conditions: encoder_hidden_states and its mask; of models for 1024 pixels also
resolution and aspect_ratio.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ...engine.contract.condition import Condition
from .family import AXES as AXES
from .family import TIME_UNIT as TIME_UNIT
from .family import Adapted, Beside, Config, Part, Prompting, text
from .family import channels as channels
from .family import learned_sigma as learned_sigma
from .family import patches as patches
from .family import scheduled as scheduled
from .family import shape as shape

TOKENS = {"PixArtSigmaPipeline": 300, "PixArtAlphaPipeline": 120}
ALIASES: Mapping[str, str] = {
    "encoder_hidden_states": "prompt_embeds",
    "encoder_attention_mask": "prompt_attention_mask",
}
NESTED = ("resolution", "aspect_ratio")  # inside added_cond_kwargs


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


def prompting(config: Config, beside: Beside) -> Prompting | None:
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
    return Adapted(model, nested=NESTED)
