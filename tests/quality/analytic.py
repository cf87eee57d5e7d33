"""A perfect network for three Gaussians, as a module and as what the search's pool calls."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from pfdiff.quality.sampling.pool import Pool

from ..oracle import Mixture

SCHEDULE = "cosine:60?beta_max=0.999"


class Analytic(nn.Module):
    """A perfect eps-network for three Gaussians on a discrete schedule; x [B, 1, 2, 2], t [B]."""

    def __init__(self, schedule: str = SCHEDULE) -> None:
        super().__init__()
        self.oracle = Mixture.of(schedule, 3)
        every = np.arange(self.oracle.schedule.last + 1)
        self.alpha = torch.from_numpy(self.oracle.schedule.alpha(every))
        self.sigma = torch.from_numpy(self.oracle.schedule.sigma(every))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (values[t.long()].view(-1, 1, 1, 1).numpy() for values in (self.alpha, self.sigma))
        return torch.from_numpy(self.oracle.eps_at(x.double().numpy(), alpha, sigma)).float()


def mixture_pool(schedule: str, prediction: str, seed: int, seeds: int, elements: int) -> tuple[Pool, list[int]]:
    """A pool of `seeds` samples [1, elements] on the exact network in float64, and the sizes of the calls it got."""
    predict = Mixture.of(schedule, 3).network(prediction)
    calls: list[int] = []

    def network(x, time, rows):
        calls.append(len(rows))
        return predict(x.astype(np.float64), time).astype(np.float32)

    noise = np.random.default_rng(seed).standard_normal((seeds, 1, elements)).astype(np.float32)
    return Pool(network, noise), calls
