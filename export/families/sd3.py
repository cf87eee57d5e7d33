"""Stable Diffusion 3: SD3Transformer2DModel, a flow.

x is `hidden_states`, the model is fed T times the flow's time. Conditions: encoder_hidden_states, pooled_projections.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...engine.contract.condition import Condition
from .family import AXES as AXES
from .family import TIME_UNIT as TIME_UNIT
from .family import Beside, Config, Part, Prompting, text_and_pooled
from .family import adapted as adapted
from .family import channels as channels
from .family import learned_sigma as learned_sigma
from .family import patches as patches
from .family import scheduled as scheduled
from .family import shape as shape

TOKENS = 333  # 77 of CLIP and 256 of T5
ALIASES: Mapping[str, str] = {
    "encoder_hidden_states": "prompt_embeds",
    "pooled_projections": "pooled_prompt_embeds",
}


def conditions(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    return text_and_pooled(config, beside, TOKENS)


def prompting(config: Config, beside: Beside) -> Prompting | None:
    return Prompting(
        (
            Part("text_encoder", "encoder_hidden_states", "penultimate"),
            Part("text_encoder_2", "encoder_hidden_states", "penultimate"),
            Part("text_encoder_3", "encoder_hidden_states", "last", block=1),
            Part("text_encoder", "pooled_projections", "projected"),
            Part("text_encoder_2", "pooled_projections", "projected"),
        ),
        scale=7.0,
    )
