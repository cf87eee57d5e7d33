"""Two U-Nets of the sizes that the literature times, with random weights: what a GPU benchmark needs of a network.

cifar       35.7 M parameters, 32x32x3: the U-Net of DDPM (Ho et al., arXiv 2006.11239, appendix B)
latents     860 M parameters, 64x64x4 with 77x768 of text: the U-Net of Stable Diffusion 1 (Rombach et al., 2112.10752)

Both are one class: residual blocks modulated by the time, attention on chosen levels, skips concatenated on the way up.
The parameter counts equal the published networks' to the last one, which a test compares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUPS = 32


@dataclass(frozen=True)
class Shape:
    """channels of a sample; widths of each level; the levels with attention; text: width of the conditioning."""

    channels: int
    widths: tuple[int, ...]
    attention: tuple[int, ...]
    attention_in_middle: bool = True
    blocks: int = 2
    text: int | None = None


CIFAR = Shape(3, (128, 256, 256, 256), attention=(1,))
LATENTS = Shape(4, (320, 640, 1280, 1280), attention=(0, 1, 2), text=768)
PARAMETERS = {"cifar": 35_746_307, "latents": 859_520_964}


class Residual(nn.Module):
    """Two 3x3 convolutions, the time added between them."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(GROUPS, inputs, eps=1e-6)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(embedding, outputs)
        self.norm_out = nn.GroupNorm(GROUPS, outputs, eps=1e-6)
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        y = self.conv_in(functional.silu(self.norm_in(x)))
        y = y + self.time(functional.silu(embedding))[:, :, None, None]
        return self.skip(x) + self.conv_out(functional.silu(self.norm_out(y)))


class PixelAttention(nn.Module):
    """Self-attention over all positions with one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width, eps=1e-6)
        self.query, self.key, self.value, self.out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor, text: Tensor | None) -> Tensor:
        y = self.norm(x)
        query, key, value = (one(y).flatten(2).transpose(1, 2)[:, None] for one in (self.query, self.key, self.value))
        z = functional.scaled_dot_product_attention(query, key, value)[:, 0]
        return x + self.out(z.transpose(1, 2).unflatten(2, x.shape[2:]))


class CrossAttention(nn.Module):
    """Eight heads; keys and values from `context`."""

    def __init__(self, width: int, context: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(context, width, bias=False)
        self.value = nn.Linear(context, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        query, key, value = (
            one.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for one in (self.query(x), self.key(context), self.value(context))
        )
        y = functional.scaled_dot_product_attention(query, key, value)
        return self.out(y.transpose(1, 2).flatten(2))


class TextAttention(nn.Module):
    """One transformer block over positions: attention to them, to the text, and a gated two-layer network."""

    def __init__(self, width: int, text: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width, eps=1e-6)
        self.project_in = nn.Conv2d(width, width, 1)
        self.norm_self, self.norm_text, self.norm_gate = (nn.LayerNorm(width) for _ in range(3))
        self.attention_self = CrossAttention(width, width)
        self.attention_text = CrossAttention(width, text)
        self.gate = nn.Linear(width, 8 * width)
        self.shrink = nn.Linear(4 * width, width)
        self.project_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, text: Tensor | None) -> Tensor:
        assert text is not None
        y = self.project_in(self.norm(x)).flatten(2).transpose(1, 2)
        normed = self.norm_self(y)
        y = y + self.attention_self(normed, normed)
        y = y + self.attention_text(self.norm_text(y), text)
        value, gate = self.gate(self.norm_gate(y)).chunk(2, dim=-1)
        y = y + self.shrink(value * functional.gelu(gate))
        return x + self.project_out(y.transpose(1, 2).unflatten(2, x.shape[2:]))


class UNet(nn.Module):
    """forward(x [B, channels, H, W], t [B], text [B, 77, width] if the shape has one) -> prediction like x."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        widths, last = shape.widths, len(shape.widths) - 1
        embedding = 4 * widths[0]
        self.first = widths[0]
        self.time = nn.Sequential(nn.Linear(widths[0], embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.stem = nn.Conv2d(shape.channels, widths[0], 3, padding=1)

        def attention(width: int) -> nn.Module:
            return PixelAttention(width) if shape.text is None else TextAttention(width, shape.text)

        # Down: blocks of each level, then half the resolution.
        self.down, self.down_attention, self.downsample = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        width, skips = widths[0], [widths[0]]
        for level, wide in enumerate(widths):
            for _ in range(shape.blocks):
                self.down.append(Residual(width, wide, embedding))
                self.down_attention.append(attention(wide) if level in shape.attention else nn.Identity())
                width = wide
                skips.append(width)
            if level < last:
                self.downsample.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)

        # Middle.
        self.middle_in, self.middle_out = Residual(width, width, embedding), Residual(width, width, embedding)
        self.middle_attention = attention(width)

        # Up: one block more than down, each with a skip.
        self.up, self.up_attention, self.upsample = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(widths))):
            for _ in range(shape.blocks + 1):
                self.up.append(Residual(width + skips.pop(), widths[level], embedding))
                width = widths[level]
                self.up_attention.append(attention(width) if level in shape.attention else nn.Identity())
            if level > 0:
                self.upsample.append(nn.Conv2d(width, width, 3, padding=1))
        self.blocks = shape.blocks
        self.norm = nn.GroupNorm(GROUPS, width, eps=1e-6)
        self.head = nn.Conv2d(width, shape.channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, text: Tensor | None = None) -> Tensor:
        # The angles reach 1000 rad, so they are formed in float32 whatever the weights are.
        half = self.first // 2
        rates = torch.exp(-math.log(10_000) * torch.arange(half, device=x.device, dtype=torch.float32) / half)
        angles = t.to(torch.float32)[:, None] * rates
        embedding = self.time(torch.cat((angles.cos(), angles.sin()), dim=1).to(x.dtype))

        y = self.stem(x)
        skips = [y]
        downsample, upsample = iter(self.downsample), iter(self.upsample)
        for n, (block, attention) in enumerate(zip(self.down, self.down_attention, strict=True), 1):
            y = _attend(attention, block(y, embedding), text)
            skips.append(y)
            if n % self.blocks == 0 and n < len(self.down):
                y = next(downsample)(y)
                skips.append(y)
        y = self.middle_out(self.middle_attention(self.middle_in(y, embedding), text), embedding)
        for n, (block, attention) in enumerate(zip(self.up, self.up_attention, strict=True), 1):
            y = _attend(attention, block(torch.cat((y, skips.pop()), dim=1), embedding), text)
            if n % (self.blocks + 1) == 0 and n < len(self.up):
                y = next(upsample)(functional.interpolate(y, scale_factor=2.0, mode="nearest"))
        return self.head(functional.silu(self.norm(y)))


def _attend(attention: nn.Module, x: Tensor, text: Tensor | None) -> Tensor:
    return x if isinstance(attention, nn.Identity) else attention(x, text)


def parameters(module: nn.Module) -> int:
    """How many numbers a module has learned."""
    return sum(one.numel() for one in module.parameters())
