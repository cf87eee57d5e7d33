"""Train the shipped policy: `python -m pfdiff.export.zoo.train_gates`; it needs no data but what its expert shows.

A sample is what Diffusion Policy's is (Chi et al., arXiv 2303.04137): the two last observations, and 16 actions from
the tick of the first of them on. Loss: E |x_theta(x_t, t, observation) - x_0|^2 on `cosine:100`. The
weights kept are an exponential moving average. The learning rate is flat, then falls linearly over the second half. A
run that was stopped goes on from its last checkpoint; random draws depend on (seed, step) alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from ...engine.atomic import replacing
from ...engine.compiler.schedule import parse_schedule
from ..policies.unet1d import ConditionalUnet1d
from .gates import TICKS
from .gates_expert import Episodes, demonstrate
from .gates_policy import HORIZON, OPTIONS, SCHEDULE, normalised

EPISODES = 6000
LEARNING_RATE, WARMUP_STEPS, DECAY_FRACTION = 1e-3, 200, 0.5
EMA_RATE = 0.998


def windows(shown: Episodes) -> tuple[Tensor, Tensor]:
    """Observations float32 [m, 14] and actions float32 [m, 16, 2], normalised, of every tick of a successful episode.

    Left out are ticks whose disc is pushed in the next 14: no observation foretells that.
    """
    observations, actions = [], []
    lead = np.arange(-1, HORIZON - 1)
    for n in np.flatnonzero(shown.success):
        ticks = shown.ticks[n]
        t = np.arange(ticks)
        pushed = np.concatenate((shown.pushed[n, :ticks], np.zeros(HORIZON, bool)))
        t = t[~np.stack([pushed[t + ahead] for ahead in range(HORIZON - 2)]).any(axis=0)]
        both = np.stack((np.maximum(t - 1, 0), t), axis=1)
        observations.append(shown.observations[n][both].reshape(len(t), -1))
        actions.append(shown.actions[n][np.clip(t[:, None] + lead, 0, ticks - 1)])
    given, wanted = np.concatenate(observations), np.concatenate(actions)
    return torch.from_numpy(normalised(given)).float(), torch.from_numpy(normalised(wanted)).float()


class Training:
    """Network, moving average and optimiser after `state["step"]` steps; `state` also has seconds and curve."""

    def __init__(self, given: argparse.Namespace) -> None:
        torch.manual_seed(given.seed)
        self.given = given
        self.model = ConditionalUnet1d(OPTIONS)
        moving = torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_RATE)
        self.average = torch.optim.swa_utils.AveragedModel(self.model, multi_avg_fn=moving)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-3)
        self.state: dict[str, Any] = {"step": 0, "seconds": 0.0, "curve": []}
        self._file = given.out / "checkpoint.pt"
        self._kept = {"model": self.model, "average": self.average, "optimizer": self.optimizer}
        if self._file.exists():
            saved = torch.load(self._file, weights_only=True)
            for name, kept in self._kept.items():
                kept.load_state_dict(saved[name])
            self.state = saved["state"]

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        with replacing(self._file) as part:
            torch.save({**{name: kept.state_dict() for name, kept in self._kept.items()}, "state": self.state}, part)

    def step(self, step: int, x_t: Tensor, t: Tensor, observation: Tensor, x_0: Tensor) -> float:
        """One step of AdamW and of the moving average; the loss."""
        fall = (self.given.steps - step) / (DECAY_FRACTION * self.given.steps)
        rate = LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS, fall)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = functional.mse_loss(self.model(x_t, t, observation), x_0)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        return loss.item()


def train(given: argparse.Namespace) -> None:
    """Train up to `given.steps` steps from the last checkpoint, then write weights and record."""
    given.out.mkdir(parents=True, exist_ok=True)
    shown = demonstrate(EPISODES, seed=1_000_000 + given.seed, pushed=True)
    observations, actions = windows(shown)
    print(json.dumps({"episodes": int(shown.success.sum()), "windows": len(actions), "ticks": TICKS}), flush=True)
    schedule = parse_schedule(SCHEDULE)
    times = np.arange(100.0)
    alphas = torch.from_numpy(schedule.alpha(times)).float()[:, None, None]
    sigmas = torch.from_numpy(schedule.sigma(times)).float()[:, None, None]
    training = Training(given)

    running, since = [], time.process_time()
    for step in range(training.state["step"], given.steps):
        # One draw of windows, times and noise.
        generator = torch.Generator().manual_seed(given.seed * 1_000_003 + step)
        index = torch.randint(len(actions), (given.batch,), generator=generator)
        x_0 = actions[index]
        t = torch.randint(len(alphas), (given.batch,), generator=generator)
        x_t = alphas[t] * x_0 + sigmas[t] * torch.randn(x_0.shape, generator=generator)
        running.append(training.step(step, x_t, t, observations[index], x_0))

        if (step + 1) % 250 == 0 or step + 1 == given.steps:
            now, loss = time.process_time(), round(float(np.mean(running)), 6)
            state = training.state
            state |= {
                "step": step + 1,
                "seconds": state["seconds"] + now - since,
                "curve": [*state["curve"], [step + 1, loss]],
            }
            running, since = [], now
            print(json.dumps({"step": step + 1, "loss": loss, "seconds": round(state["seconds"])}), flush=True)
            training.save()

    weights = training.average.module.state_dict()
    save_file({name: value.half().contiguous() for name, value in weights.items()}, given.out / "gates.safetensors")
    (given.out / "gates.json").write_text(json.dumps(record(training, len(actions)), indent=1) + "\n")


def record(training: Training, count: int) -> dict[str, Any]:
    """What is kept beside the weights: data, settings, time, hardware, losses."""
    state, given = training.state, training.given
    return {
        "network": "ConditionalUnet1d",
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "data": f"{EPISODES} episodes of gates_expert.py, {count} windows",
        "schedule": SCHEDULE,
        "prediction": "x0",
        "date": datetime.date.today().isoformat(),
        "steps": state["step"],
        "batch": given.batch,
        "seed": given.seed,
        "learning_rate": LEARNING_RATE,
        "ema_rate": EMA_RATE,
        "processor_seconds": round(state["seconds"]),
        "hardware": f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}",
        "loss_curve": state["curve"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the shipped policy of the gates task.")
    parser.add_argument("--out", type=Path, default=Path("gates-run"), help="checkpoints and weights")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())
