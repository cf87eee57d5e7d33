"""The task of the shipped policy: a disc passes two walls, each by either of two gaps, and reaches a goal.

Everything lies in the unit square (metres). The disc starts at the bottom, the walls are lines across, the goal is at
the top. An action is the position where the disc shall be a tick later; it moves there, 0.03 m at most, and the wind
adds a little. Touching a wall ends the episode. Left and right are both right, the middle is a wall: a policy that
predicts the mean of the demonstrations fails.

The interface is that of gymnasium's vector environments: `reset(seed)` and `step(actions)` over n episodes at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WALLS = (0.32, 0.66)
HALF_THICKNESS, HALF_GAP, RADIUS = 0.02, 0.07, 0.03
START_Y, GOAL_Y, GOAL_RADIUS = 0.05, 0.94, 0.04
LARGEST_STEP, WIND = 0.03, 0.002
TICKS = 120
OBSERVATION, ACTION = 7, 2


class Gates:
    """n episodes side by side; an episode that has ended stays as it is until `reset`.

    observation float64 [n, 7]: position x, y; gaps of the first wall, left and right; of the second wall; goal x.
    action float64 [n, 2]: where to be next. Both in metres.
    """

    def __init__(self, n: int = 1) -> None:
        self.n = n
        self.reset(seed=0)

    def reset(self, *, seed: int, alike: bool = False) -> tuple[Floats, dict[str, Any]]:
        """Draw n tasks from `seed`, with `alike` all as the first; the observation [n, 7] and an empty dictionary."""
        draw = np.random.default_rng(seed)
        self.wind = draw.normal(0.0, WIND, (TICKS, self.n, 2))
        self.position = np.stack((draw.uniform(0.2, 0.8, self.n), np.full(self.n, START_Y)), axis=1)
        left, right = draw.uniform(0.12, 0.36, (self.n, 2)), draw.uniform(0.64, 0.88, (self.n, 2))
        self.gaps = np.stack((left, right), axis=2)  # [n, wall, side]
        self.goal = np.stack((draw.uniform(0.15, 0.85, self.n), np.full(self.n, GOAL_Y)), axis=1)
        if alike:
            self.position, self.gaps, self.goal = (
                np.repeat(one[:1], self.n, axis=0) for one in (self.position, self.gaps, self.goal)
            )
        self.tick = 0
        self.reached, self.hit = np.zeros(self.n, bool), np.zeros(self.n, bool)
        return self.observation(), {}

    def observation(self) -> Floats:
        return np.concatenate((self.position, self.gaps.reshape(self.n, 4), self.goal[:, :1]), axis=1)

    def step(self, action: Floats) -> tuple[Floats, Floats, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """observation, reward (1 where the goal was reached now), terminated, truncated, information."""
        running = ~(self.reached | self.hit)
        self.push(limited(action - self.position, LARGEST_STEP) + self.wind[self.tick], running)
        self.tick += 1
        arrived = running & ~self.hit & (np.linalg.norm(self.position - self.goal, axis=1) < GOAL_RADIUS)
        self.reached |= arrived
        truncated = np.full(self.n, self.tick >= TICKS)
        return self.observation(), arrived.astype(float), self.reached | self.hit, truncated, {}

    def push(self, by: Floats, running: NDArray[np.bool_]) -> None:
        """Move the discs that are `running` by metres [n, 2]; those that touch a wall or leave the square are hit."""
        self.position = np.where(running[:, None], self.position + by, self.position)
        x, y = self.position.T
        self.hit |= running & ((x < RADIUS) | (x > 1 - RADIUS) | (y < RADIUS / 2) | (y > 1))
        for wall, height in enumerate(WALLS):
            beside = np.abs(x[:, None] - self.gaps[:, wall]).min(axis=1) > HALF_GAP - RADIUS
            self.hit |= running & beside & (np.abs(y - height) < HALF_THICKNESS + RADIUS)


def limited(by: Floats, largest: float) -> Floats:
    """Vectors [n, 2], those longer than `largest` shortened to it."""
    length = np.linalg.norm(by, axis=1, keepdims=True)
    return by * np.minimum(1.0, largest / np.maximum(length, 1e-12))
