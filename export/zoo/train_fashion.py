"""Train the shipped network: `python -m pfdiff.export.zoo.train_fashion --data DIR`.

Loss: E |v_theta(x_t, t, label) - v|^2 on `linear:1000`, labels dropped with probability 0.1 so that the
network also answers without one (classifier-free guidance, Ho & Salimans, arXiv 2207.12598). Times are
drawn where the error matters: log(sigma_t / alpha_t) ~ N(-0.4, 1.6^2) four times in five (the log-normal
idea of Karras et al., arXiv 2206.00364), uniform in t otherwise. The weights kept are an exponential
moving average. The learning rate is flat, then falls linearly over the last 30 % of the steps, so a run
may be lengthened from any checkpoint taken before the fall.

The data is that of fashion_data.py. A run that was stopped goes on from its last
checkpoint; random draws depend on (seed, step) alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from .checkpoint import Checkpoint
from .fashion import CLASSES, NO_LABEL, FashionUNet
from .fashion_data import load_fashion

LABEL_DROPOUT = 0.1
LEARNING_RATE = 1.5e-3
DECAY_FRACTION = 0.3
WARMUP_STEPS = 300
EMA_RATE = 0.9995


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


def commit() -> str:
    answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return answer.stdout.strip() or "unknown"


class Training:
    """Network, moving average and optimiser after `checkpoint.state["step"]` steps.

    The state also has seconds, curve, commit.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        torch.manual_seed(given.seed)
        self.given = given
        self.model = FashionUNet()
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch's overloads leave it out
        moving = torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_RATE)
        self.average = torch.optim.swa_utils.AveragedModel(self.model, multi_avg_fn=moving)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
        parts = {"model": self.model, "average": self.average, "optimizer": self.optimizer}
        start = {"step": 0, "seconds": 0.0, "curve": [], "commit": commit()}
        self.checkpoint = Checkpoint(given.out / "checkpoint.pt", parts, start)

    def step(self, step: int, x_t: Tensor, t: Tensor, label: Tensor, v: Tensor) -> float:
        """One step of AdamW and of the moving average; the loss."""
        fall = (self.given.steps - step) / (DECAY_FRACTION * self.given.steps)
        rate = LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS, fall)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = functional.mse_loss(self.model(x_t, t, label), v)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        return loss.item()


def train(given: argparse.Namespace) -> None:
    """Train up to `given.steps` steps from the last checkpoint, then write weights and record."""
    given.out.mkdir(parents=True, exist_ok=True)
    pixels, labels = load_fashion(given.data)
    x_0_all = torch.from_numpy(pixels.copy())[:, None]
    label_all = torch.from_numpy(labels.astype(np.int64))
    alphas, sigmas = linear_schedule()
    log_ratio = (sigmas / alphas).log()
    training = Training(given)

    running, since = [], time.perf_counter()
    for step in range(training.checkpoint.state["step"], given.steps):
        # One draw of data, labels, times and noise.
        generator = torch.Generator().manual_seed(given.seed * 1_000_003 + step)
        index = torch.randint(len(x_0_all), (given.batch,), generator=generator)
        x_0 = x_0_all[index].float() / 127.5 - 1
        keep = torch.rand(given.batch, generator=generator) >= LABEL_DROPOUT
        label = torch.where(keep, label_all[index], NO_LABEL)
        t = draw_times(given.batch, log_ratio, generator)
        eps = torch.randn(x_0.shape, generator=generator)
        alpha_t, sigma_t = alphas[t, None, None, None], sigmas[t, None, None, None]
        x_t = (alpha_t * x_0 + sigma_t * eps).contiguous(memory_format=torch.channels_last)
        running.append(training.step(step, x_t, t, label, alpha_t * eps - sigma_t * x_0))

        if (step + 1) % 250 == 0 or step + 1 == given.steps:
            now, loss = time.perf_counter(), round(float(np.mean(running)), 5)
            state = training.checkpoint.state
            state |= {
                "step": step + 1,
                "seconds": state["seconds"] + now - since,
                "curve": [*state["curve"], [step + 1, loss]],
            }
            running, since = [], now
            print(json.dumps({"step": step + 1, "loss": loss, "seconds": round(state["seconds"])}), flush=True)
            training.checkpoint.save()

    weights = training.average.module.state_dict()
    save_file(
        {name: value.to(torch.float16).contiguous() for name, value in weights.items()},
        given.out / "fashion.safetensors",
    )
    (given.out / "fashion.json").write_text(json.dumps(record(training), indent=1) + "\n")


def record(training: Training) -> dict[str, Any]:
    """What is kept beside the weights: data, settings, time, hardware, losses."""
    state = training.checkpoint.state
    return {
        "network": "FashionUNet",
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "data": "Fashion-MNIST, 60,000 training pictures",
        "classes": CLASSES,
        "schedule": "linear:1000",
        "prediction": "v",
        **training.checkpoint.facts(training.given),
        "learning_rate": LEARNING_RATE,
        "ema_rate": EMA_RATE,
        "label_dropout": LABEL_DROPOUT,
        "seconds": round(state["seconds"]),
        "hardware": f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}",
        "loss_curve": state["curve"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the shipped fashion network.")
    parser.add_argument("--data", type=Path, required=True, help="folder with Fashion-MNIST")
    parser.add_argument("--out", type=Path, default=Path("fashion-run"), help="checkpoints and weights")
    parser.add_argument("--steps", type=int, default=14_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())
