"""The shipped network: class-conditional Fashion-MNIST at 28x28, v-prediction on `linear:1000`.

A two-level U-Net behind a pixel-unshuffle stem: the 28x28 picture becomes 14x14 with four channels, so
every convolution works on at most 196 positions and the network stays fast on one CPU core. Residual
blocks are modulated by an embedding of time and label (FiLM, Perez et al., arXiv 1709.07871); attention
stands at 7x7 only. Skips are added, not concatenated, which halves the cost of the way up.

Notation: x_t = alpha_t x_0 + sigma_t eps, v = alpha_t eps - sigma_t x_0 (Salimans & Ho, arXiv 2202.00512).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
NO_LABEL = len(CLASSES)  # the label of the unconditional prediction, learned by label dropout
WIDTHS = (64, 128)
EMBEDDING = 256
FREQUENCIES = 32


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with weights and bias 0, so that its branch starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Residual(nn.Module):
    """Two 3x3 convolutions around a modulation by the embedding; the second starts at zero."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(8, inputs)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(EMBEDDING, 2 * outputs)
        self.norm_out = nn.GroupNorm(8, outputs)
        self.conv_out = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        y = self.conv_in(functional.silu(self.norm_in(x)))
        y = self.norm_out(y) * (1 + scale) + shift
        return self.skip(x) + self.conv_out(functional.silu(y))


class Attention(nn.Module):
    """Self-attention over all positions, four heads; the projection out starts at zero."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, width)
        self.query_key_value = nn.Conv2d(width, 3 * width, 1)
        self.out = zeroed(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        packed = self.query_key_value(self.norm(x)).unflatten(1, (3, self.heads, channels // self.heads))
        query, key, value = packed.flatten(4).transpose(3, 4).unbind(1)
        y = functional.scaled_dot_product_attention(query, key, value)
        return x + self.out(y.transpose(2, 3).flatten(1, 2).unflatten(2, (height, width)))


def angular_frequencies() -> Tensor:
    """Of the time's embedding, float32 [FREQUENCIES], falling from 1 rad a step."""
    return torch.exp(-math.log(10_000) * torch.arange(FREQUENCIES) / FREQUENCIES)


class FashionUNet(nn.Module):
    """forward(x_t [B, 1, 28, 28] float, t [B] in 0..999, label [B] int64 in 0..10) -> v [B, 1, 28, 28].

    Label 10 (`NO_LABEL`) asks for the unconditional prediction.
    """

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        wide, deep = WIDTHS
        self.register_buffer("frequencies", angular_frequencies(), persistent=False)
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, EMBEDDING))
        self.label = nn.Embedding(len(CLASSES) + 1, EMBEDDING)
        self.stem = nn.Conv2d(4, wide, 3, padding=1)
        self.down_wide = nn.ModuleList([Residual(wide, wide), Residual(wide, wide)])
        self.down = nn.Conv2d(wide, deep, 2, stride=2)
        self.down_deep = nn.ModuleList([Residual(deep, deep), Residual(deep, deep)])
        self.attention_down = Attention(deep)
        self.middle = Residual(deep, deep)
        self.attention_up = Attention(deep)
        self.up_deep = nn.ModuleList([Residual(deep, deep), Residual(deep, deep)])
        self.up = nn.ConvTranspose2d(deep, wide, 2, stride=2)
        self.up_wide = nn.ModuleList([Residual(wide, wide), Residual(wide, wide)])
        self.norm = nn.GroupNorm(8, wide)
        self.head = zeroed(nn.Conv2d(wide, 4, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        # Time and label. The angles reach 1000 rad, so they are formed in float32 whatever the weights are.
        angles = t.to(torch.float32)[:, None] * self.frequencies.to(torch.float32)
        waves = torch.cat((angles.cos(), angles.sin()), dim=1).to(x.dtype)
        embedding = functional.silu(self.time(waves) + self.label(label))

        # Way down.
        y = self.stem(functional.pixel_unshuffle(x, 2))
        skips_wide = []
        for block in self.down_wide:
            y = block(y, embedding)
            skips_wide.append(y)
        y = self.down(y)
        skips_deep = []
        for block in self.down_deep:
            y = block(y, embedding)
            skips_deep.append(y)

        # Middle.
        y = self.attention_up(self.middle(self.attention_down(y), embedding))

        # Way up.
        for block in self.up_deep:
            y = block(y + skips_deep.pop(), embedding)
        y = self.up(y)
        for block in self.up_wide:
            y = block(y + skips_wide.pop(), embedding)
        return functional.pixel_shuffle(self.head(functional.silu(self.norm(y))), 2)
