"""DiT: DiTTransformer2DModel, class labels as the only condition.

x is `hidden_states`, times are 0..T-1; the last label means no class.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...engine.contract.condition import Condition
from .family import AXES as AXES
from .family import TIME_UNIT as TIME_UNIT
from .family import Beside, Config, Prompting
from .family import adapted as adapted
from .family import channels as channels
from .family import learned_sigma as learned_sigma
from .family import patches as patches
from .family import scheduled as scheduled
from .family import shape as shape

ALIASES: Mapping[str, str] = {}


def conditions(config: Config, shape: tuple[int, ...], beside: Beside) -> tuple[Condition, ...]:
    return (Condition("class_labels", "int64", low=0, high=int(config["num_embeds_ada_norm"])),)


def prompting(config: Config, beside: Beside) -> Prompting | None:
    return None
