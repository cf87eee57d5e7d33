"""Episodes of the gates task under a policy: how many reach the goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...engine.api import Engine
from ...engine.control import Controller
from .gates import TICKS, Floats, Gates


@dataclass(frozen=True)
class Outcome:
    """Of n episodes: success [n], ticks [n], positions [TICKS + 1, n, 2] in metres, and the tasks themselves."""

    success: np.ndarray
    ticks: np.ndarray
    positions: Floats
    task: Gates

    @property
    def rate(self) -> float:
        return float(self.success.mean())


def rollout(
    engine: Engine,
    nfe: int,
    episodes: int,
    seed: int,
    *,
    strength: float | None = None,
    every: int | None = None,
    alike: bool = False,
) -> Outcome:
    """`episodes` tasks drawn from `seed`, side by side, each with noise of its own; with `alike` all are the first."""
    task = Gates(episodes)
    observation, _ = task.reset(seed=seed, alike=alike)
    control = Controller(engine, nfe, strength=strength, every=every, seed=seed * 1_000_000, robots=episodes)
    positions, ticks = [task.position], np.zeros(episodes, int)
    for _ in range(TICKS):
        running = ~(task.reached | task.hit)
        if not running.any():
            break
        observation, _, _, _, _ = task.step(control.act(observation).astype(np.float64))
        positions.append(task.position)
        ticks += running
    positions += [positions[-1]] * (TICKS + 1 - len(positions))
    return Outcome(task.reached, ticks, np.stack(positions), task)


def failures(policy: Engine, nfe: int, seeds: Sequence[int]) -> float:
    """The share of episodes that fail, for `pfdiff tune --criterion`: one episode for each seed.

    A hundredth of the mean duration, as a share of the time there is, tells apart what succeeds alike.
    """
    outcome = rollout(policy, nfe, len(seeds), int(seeds[0]))
    return 1 - outcome.rate + 0.01 * float(np.where(outcome.success, outcome.ticks, TICKS).mean()) / TICKS
