"""Small networks of every kind that the study of defaults tries, trained here in minutes on one CPU core.

    python -m pfdiff.bench.studies.samplers.small_networks --out DIR [--data DIR] [--only digits-eps moons-v]

| name     | data                                          | shape     | schedules                 |
|----------|-----------------------------------------------|-----------|---------------------------|
| moons-*  | two moons, standardised                       | [2]       | linear, cosine, flow      |
| digits-* | 8x8 digits of scikit-learn, in [-1, 1]        | [1, 8, 8] | linear, cosine, flow, edm |
| latent-* | Fashion-MNIST, 4 principal components a patch | [4, 7, 7] | scaled_linear             |
| roll-*   | a Swiss roll                                  | [2]       | cosine                    |
| checker-*| a checkerboard of 4 x 4 squares               | [2]       | linear                    |
| line-*   | three Gaussians on a line                     | [1]       | flow                      |

The last three were made when the rule of the default sampler stood, and chose nothing.

Loss: E |f_theta(x_t, t) - target|^2 with t uniform over the schedule (log-normal sigma of arXiv 2206.00364 for edm).
The weights kept are the last ones; draws depend on (name, step) alone. A network that is in DIR is not trained again.
"""

from __future__ import annotations

import argparse
import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ....engine.compiler.schedule import parse_schedule

FREQUENCIES = 16
SIGMA_DATA = 0.5


@final
@dataclass(frozen=True)
class Recipe:
    """How a network is made. data: the first word of its name; times a factor give angles of the time embedding."""

    data: str
    schedule: str
    prediction: str
    steps: int
    time_factor: float = 1.0  # brings the network's time to 0..1000


RECIPES: dict[str, Recipe] = {
    "moons-eps": Recipe("moons", "linear:1000", "eps", 6000),
    "moons-eps-cosine": Recipe("moons", "cosine:1000", "eps", 6000),
    "moons-v": Recipe("moons", "linear:1000", "v", 6000),
    "moons-x0": Recipe("moons", "linear:1000", "x0", 6000),
    "moons-flow": Recipe("moons", "flow", "flow", 6000, 1000.0),
    "digits-eps": Recipe("digits", "linear:1000", "eps", 2500),
    "digits-eps-cosine": Recipe("digits", "cosine:300", "eps", 2500, 1000 / 300),
    "digits-v": Recipe("digits", "cosine:1000", "v", 2500),
    "digits-flow": Recipe("digits", "flow", "flow", 2500, 1000.0),
    "digits-edm": Recipe("digits", "edm", "edm", 2500, 250.0),
    "latent-eps": Recipe("latent", "scaled_linear:1000", "eps", 2500),
    "latent-v": Recipe("latent", "scaled_linear:1000", "v", 2500),
    "latent-zero": Recipe("latent", "scaled_linear:1000?terminal=0", "v", 2500),
    "roll-eps": Recipe("roll", "cosine:1000", "eps", 4000),
    "checker-v": Recipe("checker", "linear:1000", "v", 4000),
    "line-flow": Recipe("line", "flow", "flow", 4000, 1000.0),
}


# Data.
def two_moons(count: int, generator: torch.Generator) -> Tensor:
    """float32 [count, 2]: two half circles with noise 0.05, each coordinate of mean 0 and deviation 1."""
    angle = math.pi * torch.rand(count, generator=generator)
    upper = torch.rand(count, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    points = torch.stack([x, y], 1) + 0.05 * torch.randn(count, 2, generator=generator)
    return (points - torch.tensor([0.5, 0.25])) / torch.tensor([0.867, 0.496])


def swiss_roll(count: int, generator: torch.Generator) -> Tensor:
    """float32 [count, 2]: a spiral of one and a half turns with noise 0.05, each coordinate of deviation about 1."""
    angle = 1.5 * math.pi * (1 + 2 * torch.rand(count, generator=generator))
    points = torch.stack([angle * angle.cos(), angle * angle.sin()], 1) / 7.2
    return points + 0.05 * torch.randn(count, 2, generator=generator)


def checkerboard(count: int, generator: torch.Generator) -> Tensor:
    """float32 [count, 2]: even over the 8 dark squares of a 4 x 4 board, each coordinate of deviation about 1."""
    row = torch.randint(4, (count,), generator=generator)
    column = 2 * torch.randint(2, (count,), generator=generator) + row % 2
    return (torch.stack([column, row], 1) + torch.rand(count, 2, generator=generator) - 2) / 1.155


def line(count: int, generator: torch.Generator) -> Tensor:
    """float32 [count, 1]: N(-1.4, 0.1^2), N(0, 0.1^2) and N(1.4, 0.1^2), a third each."""
    centre = torch.randint(3, (count, 1), generator=generator) - 1
    return 1.4 * centre + 0.1 * torch.randn(count, 1, generator=generator)


POINTS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "moons": two_moons,
    "roll": swiss_roll,
    "checker": checkerboard,
    "line": line,
}


def digits() -> Tensor:
    """float32 [1797, 1, 8, 8] in [-1, 1]: the digits of scikit-learn."""
    try:
        from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]  # of this study alone
    except ImportError:
        raise SystemExit("the digits need scikit-learn: pip install scikit-learn") from None
    return torch.from_numpy(load_digits().images.astype(np.float32))[:, None] / 8 - 1


def latents(folder: Path) -> Tensor:
    """float32 [60000, 4, 7, 7]: 4 principal components of 4x4 patches, each channel of mean 0 and deviation 1."""
    with np.load(folder / "fashion_mnist_train_uint8.npz") as data:
        pixels = data["x"].astype(np.float32) / 127.5 - 1
    patches = pixels.reshape(-1, 7, 4, 7, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 16)
    patches = patches - patches.mean(0)
    _, vectors = np.linalg.eigh(patches.T @ patches / len(patches))
    codes = patches @ vectors[:, -1:-5:-1]
    codes /= codes.std(0)
    return torch.from_numpy(codes.reshape(-1, 7, 7, 4).transpose(0, 3, 1, 2).copy())


# Networks: forward(x [B, *shape], t [B]) -> prediction [B, *shape].
class TimeEmbedding(nn.Module):
    """Cosines and sines of t * factor through two layers."""

    rates: Tensor

    def __init__(self, width: int, factor: float) -> None:
        super().__init__()
        rates = factor * torch.exp(-math.log(2000) * torch.arange(FREQUENCIES) / FREQUENCIES) / 3
        self.register_buffer("rates", rates)
        self.layers = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        angles = t.to(torch.float32)[:, None] * self.rates
        return self.layers(torch.cat([angles.cos(), angles.sin()], 1))


@final
class PointNetwork(nn.Module):
    """Three hidden layers for points [B, size]."""

    def __init__(self, factor: float, width: int = 128, size: int = 2) -> None:
        super().__init__()
        self.time = TimeEmbedding(width, factor)
        self.inner = nn.Linear(size, width)
        self.hidden = nn.ModuleList([nn.Linear(width, width) for _ in range(3)])
        self.outer = nn.Linear(width, size)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        embedding = self.time(t)
        y = self.inner(x)
        for layer in self.hidden:
            y = y + layer(functional.silu(y + embedding))
        return self.outer(functional.silu(y))


@final
class PictureNetwork(nn.Module):
    """Residual 3x3 convolutions modulated by time for small pictures [B, channels, size, size]."""

    def __init__(self, channels: int, factor: float, width: int = 32, blocks: int = 3) -> None:
        super().__init__()
        self.time = TimeEmbedding(width, factor)
        self.inner = nn.Conv2d(channels, width, 3, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(8, width) for _ in range(2 * blocks)])
        self.convolutions = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(2 * blocks)])
        self.modulations = nn.ModuleList([nn.Linear(width, 2 * width) for _ in range(blocks)])
        self.pooled = nn.ModuleList([nn.Linear(width, width) for _ in range(blocks)])
        self.norm = nn.GroupNorm(8, width)
        self.outer = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        embedding = self.time(t)
        y = self.inner(x)
        for block, (modulation, pooled) in enumerate(zip(self.modulations, self.pooled, strict=True)):
            scale, shift = modulation(functional.silu(embedding))[:, :, None, None].chunk(2, dim=1)
            z = self.convolutions[2 * block](functional.silu(self.norms[2 * block](y)))
            z = self.norms[2 * block + 1](z + pooled(z.mean((2, 3)))[:, :, None, None])
            z = z * (1 + scale) + shift
            y = y + self.convolutions[2 * block + 1](functional.silu(z))
        return self.outer(functional.silu(self.norm(y)))


def make(name: str) -> nn.Module:
    """The network of that name, untrained."""
    recipe = RECIPES[name]
    if recipe.data in POINTS:
        return PointNetwork(recipe.time_factor, size=1 if recipe.data == "line" else 2)
    return PictureNetwork({"digits": 1, "latent": 4}[recipe.data], recipe.time_factor)


def load(name: str, folder: Path) -> nn.Module:
    """The trained network. Raises FileNotFoundError when it has not been trained into `folder`."""
    network = make(name)
    network.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
    return network.eval()


# Training.
def targets(recipe: Recipe, x_0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(network input, network time [B], target) of one batch of data."""
    eps = torch.randn(x_0.shape, generator=generator)
    wide = (-1, *(1 for _ in x_0.shape[1:]))
    if recipe.prediction == "edm":
        sigma = (1.2 * torch.randn(len(x_0), generator=generator) - 0.8).exp()
        s = sigma.reshape(wide)
        total = (s**2 + SIGMA_DATA**2).sqrt()
        target = (x_0 - SIGMA_DATA**2 / total**2 * (x_0 + s * eps)) * total / (s * SIGMA_DATA)
        return (x_0 + s * eps) / total, sigma.log() / 4, target
    process = parse_schedule(recipe.schedule)
    if process.discrete:
        t = torch.randint(int(process.last) + 1, (len(x_0),), generator=generator)
    else:
        t = process.first + (process.last - process.first) * torch.rand(len(x_0), generator=generator)
        t = t.clamp(process.first, process.last)
    times = np.clip(t.double().numpy(), process.first, process.last)
    alpha, sigma = (torch.from_numpy(f(times)).float().reshape(wide) for f in (process.alpha, process.sigma))
    target = {"eps": eps, "x0": x_0, "v": alpha * eps - sigma * x_0, "flow": eps - x_0}[recipe.prediction]
    return alpha * x_0 + sigma * eps, t, target


def train(name: str, draw: Callable[[int, torch.Generator], Tensor], say: Callable[[str], None]) -> nn.Module:
    """The network after its recipe's steps of Adam; draw(count, generator) -> data [count, *shape]."""
    recipe = RECIPES[name]
    torch.manual_seed(zlib.crc32(name.encode()))
    network = make(name)
    batch, rate = (512, 2e-3) if recipe.data in POINTS else (64, 2e-3)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    start, running = time.perf_counter(), 0.0
    for step in range(recipe.steps):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {step}".encode()))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100, 2 * (1 - step / recipe.steps))
        x, t, target = targets(recipe, draw(batch, generator), generator)
        loss = functional.mse_loss(network(x, t), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        running = loss.item() if step == 0 else 0.99 * running + 0.01 * loss.item()
        if (step + 1) % 500 == 0:
            say(f"{name}: step {step + 1} of {recipe.steps}, loss {running:.4f}, {time.perf_counter() - start:.0f} s")
    return network


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="where the weights go")
    parser.add_argument("--data", type=Path, help="folder with fashion_mnist_train_uint8.npz, for the latents")
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    given = parser.parse_args(words)
    given.out.mkdir(parents=True, exist_ok=True)
    held: dict[str, Tensor] = {}
    for name in given.only:
        kind, path = RECIPES[name].data, given.out / f"{name}.pt"
        if path.exists():
            continue
        if kind == "latent" and kind not in held:
            if given.data is None:
                print(f"{name} is left out: it needs --data with fashion_mnist_train_uint8.npz", flush=True)
                continue
            held[kind] = latents(given.data)
        if kind == "digits" and kind not in held:
            held[kind] = digits()

        def draw(count: int, generator: torch.Generator, kind: str = kind) -> Tensor:
            if kind in POINTS:
                return POINTS[kind](count, generator)
            return held[kind][torch.randint(len(held[kind]), (count,), generator=generator)]

        network = train(name, draw, lambda line: print(line, flush=True))
        partial = path.with_suffix(".partial")
        torch.save(network.state_dict(), partial)
        partial.replace(path)


if __name__ == "__main__":
    main()
