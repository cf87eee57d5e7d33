"""How the judges of the shipped network are trained: classifiers of real Fashion-MNIST pictures, by AdamW.

The learning rate goes through one cycle. Each batch is changed a little, so that a judge does not learn it by heart.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from .fashion_data import load_fashion

BATCH = 128


@final
@dataclass(frozen=True)
class Recipe:
    """make: the untrained judge, [B, 1, 28, 28] in [-1, 1] -> logits. changed: a batch of pictures as it is seen."""

    make: Callable[[], nn.Module]
    changed: Callable[[Tensor], Tensor]
    rate: float
    weight_decay: float
    epochs: int
    seed: int


@torch.inference_mode()
def accuracy(model: nn.Module, pixels: np.ndarray, labels: np.ndarray) -> float:
    """Share of pictures uint8 [n, 28, 28] given their label."""
    answers = torch.cat([model(part).argmax(1) for part in _pictures(pixels).split(500)])
    return float((answers.numpy() == labels).mean())


def train(recipe: Recipe, data: Path, epochs: int, seed: int) -> nn.Module:
    """The judge; prints test accuracy an epoch."""
    torch.manual_seed(seed)
    pixels, labels = load_fashion(data)
    test_pixels, test_labels = load_fashion(data, "test")
    x_all, label_all = _pictures(pixels), torch.from_numpy(labels.astype(np.int64))
    model, batches = recipe.make(), len(x_all) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=recipe.weight_decay)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=epochs * batches)
    for epoch in range(epochs):
        model.train()
        for index in torch.randperm(len(x_all))[: batches * BATCH].view(-1, BATCH):
            logits = model(recipe.changed(x_all[index]))
            loss = functional.cross_entropy(logits, label_all[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
        print(f"epoch {epoch + 1}: test accuracy {accuracy(model.eval(), test_pixels, test_labels):.4f}", flush=True)
    return model


def run(recipe: Recipe, weights: Path, about: str) -> None:
    """The command line of a judge's file: train it, and write its weights in float16."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--data", type=Path, required=True, help="folder with Fashion-MNIST")
    parser.add_argument("--epochs", type=int, default=recipe.epochs)
    parser.add_argument("--seed", type=int, default=recipe.seed)
    options = parser.parse_args()
    state = train(recipe, options.data, options.epochs, options.seed).state_dict()
    save_file({name: one.half().contiguous() for name, one in state.items() if one.is_floating_point()}, weights)


def _pictures(pixels: np.ndarray) -> Tensor:
    """float32 [n, 1, 28, 28] in [-1, 1]."""
    return torch.from_numpy(pixels.copy())[:, None].float() / 127.5 - 1
