"""A 1-D U-Net over a sequence of actions, as robot policies use: small, and evaluated many times a second.

policy      actions [10, 16] (10 numbers at 16 steps) with 40 numbers of observation

Its shape is that of Diffusion Policy (Chi et al., arXiv 2303.04137): convolutions of 5 over time, group normalisation,
Mish, and the observation with the time as a scale and a shift of each block (FiLM). Random weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIONS, STEPS, OBSERVATION = 10, 16, 40
WIDTHS = (256, 512, 1024)
EMBEDDING = 256
GROUPS = 8


class Block(nn.Module):
    """Two convolutions; the first's output is scaled and shifted by the condition."""

    def __init__(self, inputs: int, outputs: int, condition: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(inputs, outputs, 5, padding=2)
        self.norm_first = nn.GroupNorm(GROUPS, outputs)
        self.film = nn.Linear(condition, 2 * outputs)
        self.second = nn.Conv1d(outputs, outputs, 5, padding=2)
        self.norm_second = nn.GroupNorm(GROUPS, outputs)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(functional.mish(condition))[:, :, None].chunk(2, dim=1)
        y = functional.mish(self.norm_first(self.first(x))) * scale + shift
        return self.skip(x) + functional.mish(self.norm_second(self.second(y)))


class PolicyUNet(nn.Module):
    """eps [b, 10, 16] = network(actions [b, 10, 16], t [b], observation [b, 40])."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(EMBEDDING, 4 * EMBEDDING), nn.Mish(), nn.Linear(4 * EMBEDDING, EMBEDDING))
        condition, narrow = EMBEDDING + OBSERVATION, (ACTIONS, *WIDTHS[:-1])
        pairs = list(zip(narrow, WIDTHS, strict=True))
        self.down = nn.ModuleList(nn.ModuleList((Block(a, b, condition), Block(b, b, condition))) for a, b in pairs)
        self.halve = nn.ModuleList(nn.Conv1d(one, one, 3, stride=2, padding=1) for one in WIDTHS[:-1])
        self.middle = nn.ModuleList(Block(WIDTHS[-1], WIDTHS[-1], condition) for _ in range(2))
        self.up = nn.ModuleList(
            nn.ModuleList((Block(2 * b, a, condition), Block(a, a, condition))) for a, b in reversed(pairs[1:])
        )
        self.enlarge = nn.ModuleList(nn.ConvTranspose1d(a, a, 4, stride=2, padding=1) for a, _ in reversed(pairs[1:]))
        self.head = nn.Sequential(
            nn.Conv1d(WIDTHS[0], WIDTHS[0], 5, padding=2),
            nn.GroupNorm(GROUPS, WIDTHS[0]),
            nn.Mish(),
            nn.Conv1d(WIDTHS[0], ACTIONS, 1),
        )
        octaves = torch.arange(EMBEDDING // 2) / (EMBEDDING // 2 - 1)
        self.register_buffer("frequencies", torch.exp(-math.log(10_000) * octaves))

    def forward(self, x: Tensor, t: Tensor, observation: Tensor) -> Tensor:
        angles = t.float()[:, None] * self.frequencies
        waves = torch.cat((angles.sin(), angles.cos()), dim=1).to(x.dtype)
        condition = torch.cat((self.time(waves), observation), dim=1)
        skips: list[Tensor] = []
        for n, level in enumerate(self.down):
            for block in level.children():
                x = block(x, condition)
            skips.append(x)
            if n < len(self.halve):
                x = self.halve[n](x)
        for block in self.middle:
            x = block(x, condition)
        for n, level in enumerate(self.up):
            x = torch.cat((x, skips.pop()), dim=1)
            for block in level.children():
                x = block(x, condition)
            x = self.enlarge[n](x)
        return self.head(x)
