"""A policy small enough to check by hand: its network, its encoder and the numbers of both in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import pfdiff

HORIZON, ACTIONS, STEPS = 6, 2, 2
SCALE, OFFSET = (2.0, 0.5), (1.0, -3.0)
SCHEDULE, SOLVER, GRID = "linear:1000", "ddim", "uniform"
SHAPES = {"arm": (STEPS, 3), "camera": (STEPS, 1, 2, 2)}
NUMBERS = STEPS * 4  # that the encoder makes


class Head(nn.Module):
    """eps = tanh(0.5 x) + 0.0005 t + 0.1 mean(cache)."""

    def forward(self, x: Tensor, t: Tensor, cache: Tensor) -> Tensor:
        return torch.tanh(0.5 * x) + (0.0005 * t)[:, None, None] + 0.1 * cache.mean((1, 2))[:, None, None]


class Encoder(nn.Module):
    """cache [B, steps, 4]: the arm beside the camera's mean."""

    def forward(self, arm: Tensor, camera: Tensor) -> Tensor:
        return torch.cat((arm, camera.mean((2, 3, 4))[:, :, None]), dim=2)


def network() -> pfdiff.Network:
    policy = pfdiff.Policy(SHAPES, Encoder(), scale=SCALE, offset=OFFSET, first=1, count=3)
    return pfdiff.Network(
        Head(),
        shape=(HORIZON, ACTIONS),
        schedule=SCHEDULE,
        prediction="eps",
        conditions={"cache": pfdiff.Condition("cache", "float32", (STEPS, 4))},
        name="head",
        policy=policy,
    )


def build(out: Path) -> pfdiff.Engine:
    """With programs of 1, 2 and 5 evaluations."""
    return pfdiff.build(
        network(), [1, 2, 5], SOLVER, grid=GRID, batch=[1, 4], out=out, backend="onnxruntime", threads=1
    )


def exact(noise: np.ndarray, arm: np.ndarray, camera: np.ndarray, nfe: int) -> np.ndarray:
    """Actions float64 [n, horizon, actions] of noise [n, horizon, actions] and observations [n, ..]."""
    cache = np.concatenate((arm, camera.mean((2, 3, 4))[:, :, None]), axis=2).astype(np.float64)
    added = 0.1 * cache.mean((1, 2))[:, None, None]
    program = pfdiff.compile(SOLVER, SCHEDULE, nfe, GRID, prediction="eps")
    sample = program.evaluate(lambda x, t: np.tanh(0.5 * x) + 0.0005 * t + added, noise.astype(np.float64))
    return sample * np.array(SCALE) + np.array(OFFSET)
