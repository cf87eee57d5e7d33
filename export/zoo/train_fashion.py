"""Train the shipped network: `python -m pfdiff.export.zoo.train_fashion --data DIR`.

Loss: E |v_theta(x_t, t, label) - v|^2 on `linear:1000`, labels dropped with probability 0.1 so that the
network also answers without one (classifier-free guidance, Ho & Salimans, arXiv 2207.12598). Times are
drawn where the error matters: log(sigma_t / alpha_t) ~ N(-0.4, 1.6^2) four times in five (the log-normal
idea of Karras et al., arXiv 2206.00364), uniform in t otherwise. The weights kept are an exponential
moving average. The learning rate is flat, then falls linearly over the last 30 % of the steps, so a run
may be lengthened from any checkpoint taken before the fall.

The data is that of fashion_data.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .fashion import CLASSES, NO_LABEL, FashionUNet
from .fashion_data import load_fashion
from .training import Losses, Pace, Training

LABEL_DROPOUT = 0.1
PACE = Pace(learning_rate=1.5e-3, warmup_steps=300, decay=0.3, ema_rate=0.9995)


def linear_schedule(length: int = 1000) -> tuple[Tensor, Tensor]:
    """alpha_t, sigma_t float32 [length] of betas 1e-4..0.02 (Ho et al., arXiv 2006.11239)."""
    alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, length, dtype=torch.float64), 0)
    return alphas_cumprod.sqrt().float(), (1 - alphas_cumprod).sqrt().float()


def draw_times(batch: int, log_ratio: Tensor, generator: torch.Generator) -> Tensor:
    """int64 [batch]: log-normal noise levels mapped to the nearest time, one in five uniform."""
    level = -0.4 + 1.6 * torch.randn(batch, generator=generator)
    t = torch.searchsorted(log_ratio, level).clamp(max=len(log_ratio) - 1)
    uniform = torch.randint(len(log_ratio), (batch,), generator=generator)
    inside = (level > log_ratio[0]) & (level < log_ratio[-1])
    return torch.where(inside & (torch.rand(batch, generator=generator) > 0.2), t, uniform)


def train(given: argparse.Namespace) -> None:
    """Train up to `given.steps` steps from the last checkpoint, then write weights and record."""
    given.out.mkdir(parents=True, exist_ok=True)
    pixels, labels = load_fashion(given.data)
    x_0_all = torch.from_numpy(pixels.copy())[:, None]
    label_all = torch.from_numpy(labels.astype(np.int64))
    alphas, sigmas = linear_schedule()
    log_ratio = (sigmas / alphas).log()
    torch.manual_seed(given.seed)
    model = FashionUNet()
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch's overloads leave it out

    def losses(generator: torch.Generator) -> Losses:
        """Of one draw of data, labels, times and noise."""
        index = torch.randint(len(x_0_all), (given.batch,), generator=generator)
        x_0 = x_0_all[index].float() / 127.5 - 1
        keep = torch.rand(given.batch, generator=generator) >= LABEL_DROPOUT
        label = torch.where(keep, label_all[index], NO_LABEL)
        t = draw_times(given.batch, log_ratio, generator)
        eps = torch.randn(x_0.shape, generator=generator)
        alpha_t, sigma_t = alphas[t, None, None, None], sigmas[t, None, None, None]
        x_t = (alpha_t * x_0 + sigma_t * eps).contiguous(memory_format=torch.channels_last)
        loss = functional.mse_loss(model(x_t, t, label), alpha_t * eps - sigma_t * x_0)
        return loss, [loss]

    training = Training(model, given, PACE)
    training.run(losses)
    facts = {"data": "Fashion-MNIST, 60,000 training pictures", "classes": CLASSES, "schedule": "linear:1000"}
    training.finish("fashion", {**facts, "prediction": "v", "label_dropout": LABEL_DROPOUT})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the shipped fashion network.")
    parser.add_argument("--data", type=Path, required=True, help="folder with Fashion-MNIST")
    parser.add_argument("--out", type=Path, default=Path("fashion-run"), help="checkpoints and weights")
    parser.add_argument("--steps", type=int, default=14_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())
