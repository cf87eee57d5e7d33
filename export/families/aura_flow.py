"""AuraFlow: AuraFlowTransformer2DModel, a flow.

x is `hidden_states`; the model is fed the flow's time itself. Condition: encoder_hidden_states, zero behind the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...engine.contract.condition import Condition
from .family import AXES as AXES
from .family import Beside, Config, Part, Prompting, text
from .family import adapted as adapted
from .family import channels as channels
from .family import learned_sigma as learned_sigma
from .family import patches as patches
from .family import scheduled as scheduled
from .family import shape as shape

TOKENS = 256
ALIASES: Mapping[str, str] = {"encoder_hidden_states": "prompt_embeds"}
TIME_UNIT: float = 1e-3


def conditions(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    return (text(config["joint_attention_dim"], beside.tokens or TOKENS),)


def prompting(config: Config, beside: Beside) -> Prompting | None:
    return Prompting((Part("text_encoder", "encoder_hidden_states", "masked"),), scale=3.5, masked=True)
