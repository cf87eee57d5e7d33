"""Train the shipped policy: `python -m pfdiff.export.zoo.train_gates`; it needs no data but what its expert shows.

A sample is what Diffusion Policy's is (Chi et al., arXiv 2303.04137): the two last observations, and 16 actions from
the tick of the first of them on. Loss: E |x_theta(x_t, t, observation) - x_0|^2 on `cosine:100`. The
weights kept are an exponential moving average. The learning rate is flat, then falls linearly over the second half. A
run that was stopped goes on from its last checkpoint; random draws depend on (seed, step) alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...engine.compiler.schedule import parse_schedule
from ..policies.unet1d import ConditionalUnet1d
from .gates import TICKS
from .gates_expert import Episodes, demonstrate
from .gates_policy import HORIZON, OPTIONS, SCHEDULE, normalised
from .training import Losses, Pace, Training

EPISODES = 6000
PACE = Pace(learning_rate=1e-3, warmup_steps=200, decay=0.5, ema_rate=0.998, weight_decay=1e-3)


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
    torch.manual_seed(given.seed)
    model = ConditionalUnet1d(OPTIONS)

    def losses(generator: torch.Generator) -> Losses:
        """Of one draw of windows, times and noise."""
        index = torch.randint(len(actions), (given.batch,), generator=generator)
        x_0 = actions[index]
        t = torch.randint(len(alphas), (given.batch,), generator=generator)
        x_t = alphas[t] * x_0 + sigmas[t] * torch.randn(x_0.shape, generator=generator)
        loss = functional.mse_loss(model(x_t, t, observations[index]), x_0)
        return loss, [loss]

    training = Training(model, given, PACE)
    training.run(losses)
    data = f"{EPISODES} episodes of gates_expert.py, {len(actions)} windows"
    training.finish("gates", {"data": data, "schedule": SCHEDULE, "prediction": "x0"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the shipped policy of the gates task.")
    parser.add_argument("--out", type=Path, default=Path("gates-run"), help="checkpoints and weights")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())
