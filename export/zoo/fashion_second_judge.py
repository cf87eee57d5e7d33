"""A second judge of the shipped network, as unlike the first as it may be: what one was trained on, the other judges.

Strided residual convolutions with GELU and group normalisation on 14x14 and 7x7, 96 features, trained with other draws
and with erased patches on the real training set. `fashion:second` among the feature extractors. Train it with
`python -m pfdiff.export.zoo.fashion_second_judge --data DIR`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from .judges import Recipe, run

FEATURES, WIDE, DEEP = 96, 32, 64
PATCH = 8  # side of the square that is erased in training
WEIGHTS = Path(__file__).parent / "fashion_second_judge.safetensors"


class Block(nn.Module):
    """Two 3x3 convolutions beside a skip; the first may halve the side."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.norm = nn.GroupNorm(8, outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.skip = nn.Conv2d(inputs, outputs, stride, stride) if (inputs, stride) != (outputs, 1) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.skip(x) + self.second(functional.gelu(self.norm(self.first(x)))))


class SecondJudge(nn.Module):
    """forward(x [B, 1, 28, 28] in [-1, 1]) -> logits [B, 10]; `features(x)` -> [B, 96], `maps(x)` [B, 64, 7, 7]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, WIDE, 4, 2, 1), Block(WIDE, WIDE, 1), Block(WIDE, DEEP, 2), Block(DEEP, DEEP, 1)
        )
        self.mix = nn.Conv2d(DEEP, FEATURES, 1)
        self.head = nn.Linear(FEATURES, 10)

    def maps(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def features_of_maps(self, maps: Tensor) -> Tensor:
        return functional.gelu(self.mix(maps)).mean((2, 3))

    def features(self, x: Tensor) -> Tensor:
        return self.features_of_maps(self.maps(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def load_second_judge() -> SecondJudge:
    """The shipped weights, in evaluation mode, float32."""
    model = SecondJudge()
    model.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    return model.eval()


def _erased(x: Tensor) -> Tensor:
    """A square of every picture is blank."""
    top, left = torch.randint(0, 28 - PATCH, (2,)).tolist()
    x[:, :, top : top + PATCH, left : left + PATCH] = -1.0
    return x


if __name__ == "__main__":
    recipe = Recipe(SecondJudge, _erased, rate=3e-3, weight_decay=2e-2, epochs=6, seed=1)
    run(recipe, WEIGHTS, "Train the second judge of the fashion network.")
