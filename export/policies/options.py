"""What makes a network a policy, as a user says it: observations, their encoder, units of the actions, the chunk.

    Network(head, shape=(50, 7), schedule="flow", prediction="flow", conditions={"cache": example},
            policy=Policy(observations={"image": (1, 3, 224, 224), "state": (1, 7)}, encoder=prefix, scale=s, offset=o))

`encoder` is a module: forward(image [B, 1, 3, 224, 224], state [B, 1, 7]) -> cache [B, ...], or a tuple of tensors
where the network has several conditions. It runs once a chunk, the network in each evaluation: of a
vision-language-action model the encoder is the prefix with its keys and values, the network the action expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from torch import nn


@final
@dataclass(frozen=True)
class Policy:
    """Of a network whose samples are [horizon, actions].

    observations: by name, the shape [steps, ...] of each, float32, without the batch. encoder: None where the
    observations, joined along their last axis, are the network's one condition; then normalise them in its forward.
    conditions: those that the encoder makes, in its order; by default all of the network's.
    scale, offset: actions = scale * sample + offset, one number or one for each action. first, count: the actions of
    the horizon that are carried out; count None means half of the horizon.
    """

    observations: Mapping[str, tuple[int, ...]]
    encoder: nn.Module | None = None
    conditions: Sequence[str] = ()
    scale: float | Sequence[float] = 1.0
    offset: float | Sequence[float] = 0.0
    first: int = 0
    count: int | None = None
    content: bytes = field(default=b"", repr=False)  # further text for the network's digest
