"""Gradients of a table by forward differences against those by backpropagation through the same network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pfdiff
from pfdiff.quality.refining.aim import Aim
from pfdiff.quality.refining.descend import Descent, Plan
from pfdiff.quality.refining.through_module import ThroughModule
from pfdiff.quality.refining.through_pool import ThroughPool, gradient_cost
from pfdiff.quality.sampling.budget import Budget
from pfdiff.quality.sampling.pool import Pool

SEEDS, NFE = 6, 3


class Smooth(torch.nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x + 0.3 * x.roll(1, -1)) * (1 + 0.2 * t.reshape(-1, 1))


def descents() -> tuple[Descent, Descent, Budget]:
    """(by backpropagation, by differences, what the second is charged to)."""
    module = Smooth().eval()
    contract = pfdiff.Network(module, shape=(5,), schedule="vp", prediction="eps").contract
    program = pfdiff.compile("ddim", "vp", NFE, "uniform")
    noise = np.random.default_rng(0).standard_normal((SEEDS, 5)).astype(np.float32)

    def network(x: np.ndarray, time: float, rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(x), torch.full((len(rows),), time)).numpy()

    budget = Budget()
    through = ThroughModule(module, contract, program, torch.from_numpy(noise), [])
    black_box = ThroughPool(Pool(network, noise), program, budget)
    found = []
    for one in (through, black_box):
        aim = Aim(torch.zeros(SEEDS, 5), (-9e9, 9e9))
        found.append(Descent(one, aim, np.arange(SEEDS), lambda _: 0.0, Plan(steps=1, batch=SEEDS, metric_seeds=SEEDS)))
    for one in found:
        one._prepare()
    return found[0], found[1], budget


def test_differences_are_the_gradient() -> None:
    exact, approximate, budget = descents()
    np.testing.assert_allclose(approximate.units, exact.units, rtol=1e-5)
    approximate.mixing = exact.mixing = np.eye(len(exact.units))
    spent = budget.spent
    moved = np.append(np.full(len(exact.places), 0.01), [-0.05, 0.05, 0.05])  # times inside the schedule
    slopes = [one._gradient(moved, 0, None) for one in (exact, approximate)]
    assert slopes[1][1] == pytest.approx(slopes[0][1], rel=1e-5)
    scale = np.abs(slopes[0][0]).max()
    np.testing.assert_allclose(slopes[1][0], slopes[0][0], atol=0.01 * scale)
    assert scale > 0.1
    assert budget.spent - spent == SEEDS * gradient_cost(NFE)
