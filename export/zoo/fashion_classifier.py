"""The judge of the shipped network: a Fashion-MNIST classifier whose features also measure Frechet distances.

Four 3x3 convolutions on 28x28, 14x14 and 7x7, about 0.24 M parameters, trained on the real training set only. A
distance on its features is never called FID. Train it with `python -m pfdiff.export.zoo.fashion_classifier --data DIR`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from .judges import Recipe, run

FEATURES = 128
DEEP = 11  # layers before the last convolution: their 7x7 maps still say where something is
WEIGHTS = Path(__file__).parent / "fashion_classifier.safetensors"


class FashionClassifier(nn.Module):
    """forward(x [B, 1, 28, 28] in [-1, 1]) -> logits [B, 10]; `features(x)` -> [B, 128], `maps(x)` [B, 128, 7, 7]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, padding=1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(128, FEATURES, 3, padding=1, bias=False),
            nn.BatchNorm2d(FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, 10)

    def maps(self, x: Tensor) -> Tensor:
        return self.layers[:DEEP](x)

    def features(self, x: Tensor) -> Tensor:
        return self.features_of_maps(self.maps(x))

    def features_of_maps(self, maps: Tensor) -> Tensor:
        return self.layers[DEEP:](maps).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def load_classifier() -> FashionClassifier:
    """The shipped weights, in evaluation mode, float32."""
    model = FashionClassifier()
    model.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()}, strict=False)
    return model.eval()


def _make() -> FashionClassifier:
    model = FashionClassifier()
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch's overloads leave it out
    return model


def _shifted(x: Tensor) -> Tensor:
    """By up to two pixels."""
    top, left = torch.randint(0, 5, (2,)).tolist()
    return functional.pad(x, (2, 2, 2, 2), value=-1.0)[:, :, top : top + 28, left : left + 28]


if __name__ == "__main__":
    recipe = Recipe(_make, _shifted, rate=4e-3, weight_decay=1e-2, epochs=10, seed=0)
    run(recipe, WEIGHTS, "Train the classifier that judges the fashion network.")
