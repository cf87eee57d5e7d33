"""A small network as an ONNX file: convolutions, linear layers on pixels, normalisation, a time embedding."""

from __future__ import annotations

import math
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfdiff.export.network import Network

SHAPE = (2, 8, 8)
WORDS: dict[str, Any] = {"schedule": "linear:1000", "prediction": "v"}
SAMPLER: dict[str, Any] = {"solver": "ddim", "grid": "trailing"}
WIDTH = 16


class Small(nn.Module):
    """forward(x [B, 2, 8, 8], t [B]) -> v; 4 convolutions and 2 linear layers on pixels that are worth quantising."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.time = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
        self.inner = nn.Conv2d(2, width, 3, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(4, width) for _ in range(2)])
        self.convolutions = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(2)])
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.outer = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        rates = torch.exp(-math.log(1000.0) * torch.arange(8, dtype=torch.float32) / 8)
        angles = t.to(torch.float32)[:, None] * rates
        embedding = self.time(torch.cat((angles.cos(), angles.sin()), 1).to(x.dtype))
        y = self.inner(x)
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            y = y + convolution(functional.silu(norm(y + embedding[:, :, None, None])))
        pixels = y.flatten(2).transpose(1, 2)
        y = y + self.narrow(functional.silu(self.wide(pixels))).transpose(1, 2).unflatten(2, (8, 8))
        return self.outer(y) + 0.5 * x


@cache
def _exported() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        Network(Small(), shape=SHAPE, name="small", **WORDS).write(Path(folder))
        return (Path(folder) / "network.onnx").read_bytes()


def small_file(folder: Path) -> Path:
    """Its float32 ONNX file, as anybody might bring it."""
    path = folder / "small.onnx"
    path.write_bytes(_exported())
    return path
