"""The judge of the shipped network: a Fashion-MNIST classifier whose features also measure Frechet distances.

Four 3x3 convolutions on 28x28, 14x14 and 7x7, about 0.24 M parameters, trained on the real training set only. A
distance on its features is never called FID. Train it with `python -m pfdiff.export.zoo.fashion_classifier --data DIR`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from .fashion_data import load_fashion

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


@torch.inference_mode()
def accuracy(model: FashionClassifier, pixels: np.ndarray, labels: np.ndarray) -> float:
    """Share of pictures uint8 [n, 28, 28] given their label."""
    x = torch.from_numpy(pixels)[:, None].float() / 127.5 - 1
    answers = torch.cat([model(part).argmax(1) for part in x.split(500)])
    return float((answers.numpy() == labels).mean())


def train(data: Path, epochs: int, seed: int) -> FashionClassifier:
    """Adam with a one-cycle rate on shifted copies of the training set; prints test accuracy an epoch."""
    torch.manual_seed(seed)
    pixels, labels = load_fashion(data)
    test_pixels, test_labels = load_fashion(data, "test")
    x_all = torch.from_numpy(pixels.copy())[:, None].float() / 127.5 - 1
    label_all = torch.from_numpy(labels.astype(np.int64))
    model, batch = FashionClassifier(), 128
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch's overloads leave it out
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * (len(x_all) // batch))
    for epoch in range(epochs):
        model.train()
        for index in torch.randperm(len(x_all))[: len(x_all) // batch * batch].view(-1, batch):
            # A shift of up to two pixels.
            top, left = torch.randint(0, 5, (2,)).tolist()
            x = functional.pad(x_all[index], (2, 2, 2, 2), value=-1.0)[:, :, top : top + 28, left : left + 28]
            loss = functional.cross_entropy(model(x), label_all[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
        print(f"epoch {epoch + 1}: test accuracy {accuracy(model.eval(), test_pixels, test_labels):.4f}", flush=True)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the classifier that judges the fashion network.")
    parser.add_argument("--data", type=Path, required=True, help="folder with Fashion-MNIST")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    state = train(options.data, options.epochs, options.seed).state_dict()
    kept = {name: value.half().contiguous() for name, value in state.items() if value.is_floating_point()}
    save_file(kept, WEIGHTS)
