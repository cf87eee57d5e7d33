"""A small diffusion transformer (DiT, Peebles and Xie, arXiv 2212.09748) on Fashion-MNIST, trained on one CPU core.

    python -m pfdiff.bench.studies.small_dit --data DIR --out small_dit.pt [--minutes 12]

Patches of 4x4 are 49 tokens of width 128; four blocks with adaptive layer norms; it predicts v on linear:1000. Training
goes on from the file that is there, so an interrupted run loses a minute at most.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...engine.compiler.schedule import parse_schedule
from ...export.zoo.fashion_data import load_fashion

SCHEDULE, PREDICTION, SHAPE = "linear:1000", "v", (1, 28, 28)
PATCH, WIDTH, BLOCKS, HEADS = 4, 128, 4, 4
BATCH, RATE, SAVED_S = 16, 1e-3, 60.0


@final
class Block(nn.Module):
    """Attention and a two-layer network, each normalised, scaled, shifted and gated by the time."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH, elementwise_affine=False) for _ in range(2)])
        self.project, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(embedding)[:, None].chunk(6, dim=-1)
        y = self.norms[0](x) * (1 + scale_1) + shift_1
        query, key, value = (one.unflatten(2, (HEADS, -1)).transpose(1, 2) for one in self.project(y).chunk(3, dim=-1))
        y = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + gate_1 * self.out(y)
        y = self.norms[1](x) * (1 + scale_2) + shift_2
        return x + gate_2 * self.narrow(functional.gelu(self.wide(y), approximate="tanh"))


@final
class SmallDiT(nn.Module):
    """forward(x [B, 1, 28, 28], t [B]) -> v like x."""

    def __init__(self) -> None:
        super().__init__()
        side = SHAPE[1] // PATCH
        self.inner = nn.Conv2d(SHAPE[0], WIDTH, PATCH, stride=PATCH)
        self.places = nn.Parameter(0.02 * torch.randn(1, side * side, WIDTH))
        self.time = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU())
        self.blocks = nn.ModuleList([Block() for _ in range(BLOCKS)])
        self.norm = nn.LayerNorm(WIDTH)
        self.outer = nn.Linear(WIDTH, PATCH * PATCH * SHAPE[0])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        half = WIDTH // 2
        rates = torch.exp(-math.log(10_000) * torch.arange(half, device=x.device, dtype=torch.float32) / half)
        angles = t.to(torch.float32)[:, None] * rates
        embedding = self.time(torch.cat((angles.cos(), angles.sin()), dim=1).to(x.dtype))
        y = self.inner(x).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            y = block(y, embedding)
        side = SHAPE[1] // PATCH
        y = self.outer(self.norm(y)).reshape(-1, side, side, SHAPE[0], PATCH, PATCH)
        return y.permute(0, 3, 1, 4, 2, 5).reshape(-1, *SHAPE)


def load(path: Path) -> SmallDiT:
    """The trained network in evaluation mode."""
    module = SmallDiT()
    module.load_state_dict(torch.load(path, weights_only=True)["average"])
    return module.eval()


def train(data: Path, path: Path, minutes: float) -> None:
    """Adam, and an average of the weights, which is what `load` takes."""
    pixels = torch.from_numpy(load_fashion(data)[0]).float()[:, None] / 127.5 - 1
    process = parse_schedule(SCHEDULE)
    alphas, sigmas = (torch.from_numpy(of(torch.arange(1000).numpy())).float() for of in (process.alpha, process.sigma))
    module, average = SmallDiT(), SmallDiT()
    optimiser = torch.optim.AdamW(module.parameters(), RATE, weight_decay=0.0)
    step, spent = 0, 0.0
    if path.exists():
        held: dict[str, Any] = torch.load(path, weights_only=True)
        module.load_state_dict(held["module"])
        average.load_state_dict(held["average"])
        optimiser.load_state_dict(held["optimiser"])
        step, spent = held["step"], held["spent"]
    else:
        average.load_state_dict(module.state_dict())
    start = saved = time.monotonic()
    while spent + time.monotonic() - start < 60 * minutes:
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(pixels), (BATCH,), generator=generator)
        t = torch.randint(1000, (BATCH,), generator=generator)
        x_0, noise = pixels[rows], torch.randn(BATCH, *SHAPE, generator=generator)
        alpha, sigma = (one[t][:, None, None, None] for one in (alphas, sigmas))
        loss = (module(alpha * x_0 + sigma * noise, t.float()) - (alpha * noise - sigma * x_0)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        step += 1
        keep = min(0.999, step / (step + 10))
        with torch.no_grad():
            for mean, now in zip(average.parameters(), module.parameters(), strict=True):
                mean.lerp_(now, 1 - keep)
        if time.monotonic() - saved > SAVED_S or spent + time.monotonic() - start >= 60 * minutes:
            saved = time.monotonic()
            states = {"module": module.state_dict(), "average": average.state_dict()}
            states |= {"optimiser": optimiser.state_dict(), "step": step, "spent": spent + saved - start}
            part = path.with_suffix(".part")
            torch.save(states, part)
            os.replace(part, path)
            print(f"step {step}, {(spent + saved - start) / 60:.1f} minutes, loss {loss.item():.4f}", flush=True)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with Fashion-MNIST")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=12.0)
    given = parser.parse_args(words)
    train(given.data, given.out, given.minutes)


if __name__ == "__main__":
    main()
