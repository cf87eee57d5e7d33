"""What stands around a policy's U-Net: the observation's normalisation in the graph, and the joining of features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from .scaling import Scaled


@final
class ObservedUnet(nn.Module):
    """forward(x [B, horizon, actions], t [B], observation [B, steps, numbers]) -> the U-Net's output."""

    def __init__(self, unet: nn.Module, scaled: Scaled) -> None:
        super().__init__()
        self.unet = unet
        self.scaled = scaled

    def forward(self, x: Tensor, t: Tensor, observation: Tensor) -> Tensor:
        return self.unet(x, t, self.scaled(observation).flatten(1).to(x.dtype))


@final
class ObservationEncoder(nn.Module):
    """forward(*observations [B, steps, ...]) -> global_cond [B, steps x features].

    cameras: the encoder of each observation that is a picture, None where it is numbers. Each step's features are
    joined in the order of the observations.
    """

    def __init__(self, scaled: Sequence[Scaled], cameras: Sequence[nn.Module | None]) -> None:
        super().__init__()
        self.scaled = nn.ModuleList(scaled)
        self.cameras = nn.ModuleList(nn.Identity() if one is None else one for one in cameras)
        self.pictures = tuple(one is not None for one in cameras)

    def forward(self, *observations: Tensor) -> Tensor:
        features = []
        for value, scaled, camera, picture in zip(observations, self.scaled, self.cameras, self.pictures, strict=True):
            y = scaled(value)
            features.append(camera(y.flatten(0, 1)).unflatten(0, value.shape[:2]) if picture else y)
        return torch.cat(features, dim=-1).flatten(1)
