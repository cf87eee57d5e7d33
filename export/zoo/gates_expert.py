"""The scripted expert of the gates task, and demonstrations by it.

At each wall it takes a gap by chance, the nearer the likelier (weight exp(-distance / 0.3 m)). It walks straight to a
point below the gap, through it, and on. In demonstrations the disc is now and then pushed aside, so that they also show
how one comes back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .gates import ACTION, OBSERVATION, TICKS, WALLS, Floats, Gates, limited

STRIDE, CLEARANCE, CARELESS = 0.022, 0.065, 0.3
OFF_LINE = 0.02
PUSHED_EVERY, PUSH = 40, 0.025


class Expert:
    """Plans for the n episodes of `task`, drawn from `seed`; called every tick."""

    def __init__(self, task: Gates, seed: int) -> None:
        draw = np.random.default_rng([seed, 1])
        x = task.position[:, 0]
        points = []
        for wall, height in enumerate(WALLS):
            weights = np.exp(-np.abs(task.gaps[:, wall] - x[:, None]) / CARELESS)
            right = draw.random(task.n) < weights[:, 1] / weights.sum(axis=1)
            x = np.where(right, task.gaps[:, wall, 1], task.gaps[:, wall, 0])
            points += [np.stack((x, np.full(task.n, height + side)), axis=1) for side in (-CLEARANCE, CLEARANCE)]
        self.points = np.stack((*points, task.goal), axis=1)  # [n, 5, 2]
        self.next = np.zeros(task.n, int)

    def __call__(self, position: Floats) -> Floats:
        """Where to be next [n, 2], from positions [n, 2]."""
        each = np.arange(len(position))
        to = self.points[each, self.next] - position
        # Before a wall but no longer below its gap: back to the point below.
        astray = (self.next % 2 == 1) & (np.abs(to[:, 0]) > OFF_LINE) & (to[:, 1] > CLEARANCE + 0.05)
        self.next -= astray
        near = np.linalg.norm(self.points[each, self.next] - position, axis=1) < STRIDE
        self.next = np.minimum(self.next + near, self.points.shape[1] - 1)
        return position + limited(self.points[each, self.next] - position, STRIDE)


@dataclass(frozen=True)
class Episodes:
    """n episodes: observations [n, TICKS + 1, 7], actions [n, TICKS, 2], pushed after a tick [n, TICKS]; ticks [n]."""

    observations: Floats
    actions: Floats
    pushed: np.ndarray
    ticks: np.ndarray
    success: np.ndarray


def demonstrate(n: int, seed: int, *, pushed: bool) -> Episodes:
    """n episodes of the expert; pushed: the disc is, by 0.025 m (standard deviation), every 40 ticks or so."""
    task = Gates(n)
    observation, _ = task.reset(seed=seed)
    expert, draw = Expert(task, seed), np.random.default_rng([seed, 2])
    observations, actions = np.zeros((n, TICKS + 1, OBSERVATION)), np.zeros((n, TICKS, ACTION))
    pushes, ticks = np.zeros((n, TICKS), bool), np.zeros(n, int)
    observations[:, 0] = observation
    for tick in range(TICKS):
        action = expert(task.position)
        running = ~(task.reached | task.hit)
        actions[:, tick] = action
        observation, _, ended, _, _ = task.step(action)
        if pushed:
            pushes[:, tick] = draw.random(n) < 1 / PUSHED_EVERY
            task.push(draw.normal(0, PUSH, (n, 2)) * pushes[:, tick, None], ~ended)
            observation = task.observation()
        observations[:, tick + 1] = observation
        ticks += running
    return Episodes(observations, actions, pushes, ticks, task.reached)
