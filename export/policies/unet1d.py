"""A 1-D U-Net over a sequence of actions, modulated by time and observation: the network of Diffusion Policy.

Chi et al., arXiv 2303.04137, section 3.1: convolutions over time, group normalisation and Mish; the embedding of the
diffusion time is joined with the observation and becomes a scale and a shift of each block (FiLM, arXiv 1709.07871).
Names of the weights are those of LeRobot's `DiffusionConditionalUnet1d`, so that its files load as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LONGEST_PERIOD = 10_000


@dataclass(frozen=True)
class UnetOptions:
    """Sizes of the network. `widths`: channels of each level; the horizon is a multiple of 2^(levels - 1)."""

    actions: int
    condition: int
    widths: tuple[int, ...] = (512, 1024, 2048)
    kernel: int = 5
    groups: int = 8
    embedding: int = 128
    film_scale: bool = True


class TimeWaves(nn.Module):
    """t [B] -> sines and cosines [B, width], frequencies falling from 1 to 1 / 10,000 rad a step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pairs = width // 2

    def forward(self, t: Tensor) -> Tensor:
        octaves = torch.arange(self.pairs, device=t.device) * -(math.log(LONGEST_PERIOD) / (self.pairs - 1))
        angles = t.float()[:, None] * torch.exp(octaves)[None, :]
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class Convolution(nn.Module):
    """Convolution over time, group normalisation, Mish: [B, C, T] -> [B, D, T]."""

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int) -> None:
        super().__init__()
        convolution = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2)
        self.block = nn.Sequential(convolution, nn.GroupNorm(groups, outputs), nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class ResidualBlock(nn.Module):
    """Two convolutions; the first's output is scaled and shifted by the condition [B, E]."""

    def __init__(self, inputs: int, outputs: int, given: UnetOptions) -> None:
        super().__init__()
        self.scaled = given.film_scale
        film = 2 * outputs if self.scaled else outputs
        self.conv1 = Convolution(inputs, outputs, given.kernel, given.groups)
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(given.embedding + given.condition, film))
        self.conv2 = Convolution(outputs, outputs, given.kernel, given.groups)
        self.residual_conv = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        film = self.cond_encoder(condition)[:, :, None]
        y = self.conv1(x)
        if self.scaled:
            scale, shift = film.chunk(2, dim=1)
            y = scale * y + shift
        else:
            y = y + film
        return self.conv2(y) + self.residual_conv(x)


class ConditionalUnet1d(nn.Module):
    """forward(x_t [B, horizon, actions], t [B], global_cond [B, condition]) -> what it predicts, of x_t's shape."""

    def __init__(self, given: UnetOptions) -> None:
        super().__init__()
        self.given = given
        wide = 4 * given.embedding
        self.diffusion_step_encoder = nn.Sequential(
            TimeWaves(given.embedding), nn.Linear(given.embedding, wide), nn.Mish(), nn.Linear(wide, given.embedding)
        )
        levels = list(zip((given.actions, *given.widths[:-1]), given.widths, strict=True))
        deepest, last = given.widths[-1], len(levels) - 1
        self.down_modules = nn.ModuleList(
            nn.ModuleList(
                [
                    ResidualBlock(a, b, given),
                    ResidualBlock(b, b, given),
                    nn.Identity() if n == last else nn.Conv1d(b, b, 3, stride=2, padding=1),
                ]
            )
            for n, (a, b) in enumerate(levels)
        )
        self.mid_modules = nn.ModuleList(ResidualBlock(deepest, deepest, given) for _ in range(2))
        self.up_modules = nn.ModuleList(
            nn.ModuleList(
                [
                    ResidualBlock(2 * b, a, given),
                    ResidualBlock(a, a, given),
                    nn.ConvTranspose1d(a, a, 4, stride=2, padding=1),
                ]
            )
            for a, b in reversed(levels[1:])
        )
        # LeRobot's last convolution leaves the number of groups at its default of 8.
        narrow = given.widths[0]
        self.final_conv = nn.Sequential(
            Convolution(narrow, narrow, given.kernel, 8), nn.Conv1d(narrow, given.actions, 1)
        )

    def forward(self, x: Tensor, t: Tensor, global_cond: Tensor) -> Tensor:
        waves = self.diffusion_step_encoder[0](t).to(x.dtype)
        condition = torch.cat((self.diffusion_step_encoder[1:](waves), global_cond), dim=-1)
        x = x.transpose(1, 2)
        skips: list[Tensor] = []
        for level in self.down_modules:
            first, second, halve = level.children()
            skips.append(second(first(x, condition), condition))
            x = halve(skips[-1])
        for block in self.mid_modules:
            x = block(x, condition)
        for level in self.up_modules:
            first, second, double = level.children()
            x = double(second(first(torch.cat((x, skips.pop()), dim=1), condition), condition))
        return self.final_conv(x).transpose(1, 2)
