"""Wan text to video: WanTransformer3DModel, a flow over the latents of frames, [C, frames, H, W].

x is `hidden_states`, the model is fed T times the flow's time. Condition: encoder_hidden_states, zero after the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...engine.contract.condition import Condition
from ...engine.errors import InputError
from .family import TIME_UNIT as TIME_UNIT
from .family import Beside, Config, Part, Prompting, text
from .family import adapted as adapted
from .family import channels as channels
from .family import learned_sigma as learned_sigma
from .family import scheduled as scheduled

TOKENS = 512
AXES: tuple[str, ...] = ("frames", "height", "width")
ALIASES: Mapping[str, str] = {"encoder_hidden_states": "prompt_embeds"}


def shape(config: Config) -> tuple[int, ...] | None:
    return channels(config), 21, 60, 104  # 81 frames of 480 x 832 pixels


def patches(config: Config, shape: tuple[int, ...]) -> int:
    found = 1
    for size, side in zip(shape[1:], config["patch_size"], strict=True):
        found *= size // int(side)
    return found


def conditions(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    for key in ("image_dim", "added_kv_proj_dim"):
        if config.get(key):
            raise InputError(f"{key} is set, a model that starts from a picture, which is not known here; give T2V")
    if beside.options.get("expand_timesteps") or beside.options.get("boundary_ratio") is not None:
        raise InputError("its pipeline is of Wan 2.2, with two networks or a time for each patch; give one of Wan 2.1")
    return (text(config["text_dim"], beside.tokens or TOKENS),)


def prompting(config: Config, beside: Beside) -> Prompting | None:
    part = Part("text_encoder", "encoder_hidden_states", "masked")
    return Prompting((part,), scale=5.0, tidy=True, masked=True)
