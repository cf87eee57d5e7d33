"""The shipped policy by this library and by diffusers' schedulers in eager PyTorch: success and time, in one run.

    python -m pfdiff.bench.studies.policy_loops --out policy_loops.json [--episodes 256] [--rounds 40] [--threads 1]

Success is that of the gates task, on tasks that neither training nor tuning has seen, each with noise of its own. Time
is that of one chunk of 8 actions at batch 1: all samplers in turns, one call each a round, on the same network and
observation; ratios are medians over the rounds. What diffusers runs is the module itself, in inference mode, fed with
the observation as PyTorch takes it, clip_sample as the policy's scheduler has it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from ...engine.api import Engine
from ...engine.runtime.noise import noise
from ...export.engine_directory import write_programs
from ...export.network import Network
from ...export.zoo.gates_expert import demonstrate
from ...export.zoo.gates_policy import DONE, SCHEDULER
from ...export.zoo.gates_rollout import rollout
from ...export.zoo.gates_samplers import NAMES, NFE, programs_of
from ..measuring.machine import describe

SEED = 9_000
TIMED = "tuned, 4 evaluations"  # what the ratios are of
OURS = (*(("tuned", nfe) for nfe in NFE), ("PFDiff", 4), ("DDIM", 4), ("DDIM", 16), ("DDPM", 16))
PEERS = (("DDIM", 16), ("DDPM", 16), ("DDPM", 100))


@final
@dataclass(frozen=True)
class Row:
    """One sampler. ratio: its median time over that of `TIMED`, round by round."""

    name: str
    success: float
    p50_ms: float
    p99_ms: float
    per_action_ms: float
    ratio: float


@final
class Eager:
    """A scheduler of diffusers' around the network's own module, with as much of `Engine` as a Controller takes."""

    def __init__(self, network: Network, engine: Engine, kind: str, evaluations: int) -> None:
        import diffusers

        config = {key: value for key, value in SCHEDULER.items() if key != "_class_name"}
        self._scheduler: Any = getattr(diffusers, f"{kind}Scheduler")(**config)
        self._evaluations = evaluations
        self._module: Any = network._source.module  # pyright: ignore[reportAttributeAccessIssue]
        self.policy, self.contract, self.path = engine.policy, engine.contract, engine.path

    @torch.inference_mode()
    def sample(self, *, seeds: Sequence[int], observation: Any, nfe: int | None = None) -> torch.Tensor:
        given = torch.from_numpy(np.asarray(observation["observation"], np.float32))
        x = noise(seeds, self.contract.shape)
        self._scheduler.set_timesteps(self._evaluations)
        for t in self._scheduler.timesteps:
            out = self._module(x, t.expand(len(x)), given)
            x = self._scheduler.step(out, t, x).prev_sample
        return 0.5 * x + 0.5


def main(out: Path, episodes: int, rounds: int, threads: int) -> None:
    torch.set_num_threads(threads)
    network = Network("gates")
    tables = {name: programs_of(network.contract, name) for name in NAMES}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "gates.engine"
        artifact = write_programs(place, network, tables["tuned"], batch=(1, 8, 64), say=lambda line: None)
        with Engine.open(artifact, threads=threads) as engine:
            faces: dict[str, tuple[Any, int]] = {
                f"{name}, {nfe} evaluation{'s' * (nfe > 1)}": (engine.with_programs(tables[name]), nfe)
                for name, nfe in OURS
            }
            for kind, evaluations in PEERS:
                eager = Eager(network, engine, kind, evaluations)
                faces[f"diffusers {kind}, {evaluations} evaluations"] = eager, evaluations
            success = {name: rollout(one, nfe, episodes, SEED).rate for name, (one, nfe) in faces.items()}
            times = timed({name: call(one, nfe) for name, (one, nfe) in faces.items()}, rounds)
            record = {"description": engine.description, "threads": threads, "episodes": episodes}
    expert = float(demonstrate(episodes, SEED, pushed=False).success.mean())
    rows = [row(name, success[name], times) for name in faces]
    for one in rows:
        print(f"{one.name:32} {one.success:7.1%} {one.p50_ms:9.2f} ms  {one.ratio:6.2f} x", flush=True)
    load = {"load_average": os.getloadavg()[0], "rounds": rounds}
    found = {"machine": describe(), **record, **load, "expert": expert, "figures": [asdict(one) for one in rows]}
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def call(engine: Any, nfe: int) -> Callable[[int], object]:
    observation = {"observation": np.full((1, 2, 7), 0.5, np.float32)}
    return lambda seed: engine.sample(seeds=[seed], observation=observation, nfe=nfe)


def timed(calls: dict[str, Callable[[int], object]], rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds [rounds] of each, one call of each in every round."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-3, rounds):
        for name, one in calls.items():
            start = time.perf_counter()
            one(turn + 3)
            if turn >= 0:
                found[name].append(1e3 * (time.perf_counter() - start))
    return {name: np.array(one) for name, one in found.items()}


def row(name: str, success: float, times: dict[str, np.ndarray]) -> Row:
    own = times[name]
    ratio = float(np.median(own / times[TIMED]))
    p50, p99 = np.percentile(own, (50, 99))
    return Row(name, success, float(p50), float(p99), float(p50) / DONE, ratio)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The shipped policy here and by diffusers' schedulers.")
    parser.add_argument("--out", type=Path, default=Path("policy_loops.json"))
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    main(given.out, given.episodes, given.rounds, given.threads)
