"""Distil the shipped network to a consistency model: `python -m pfdiff.export.zoo.distil_fashion --out DIR`.

The consistency function f(x_t, t) is the end of the teacher's probability flow that goes through x_t (Song et al.,
arXiv 2303.01469). Here the student regresses it on ends that are known: the teacher, `fashion`, is sampled once along
13 times, and every state of a trajectory is a pair with the trajectory's end. No target network, no bootstrap.

    f(x_t, t) = c_skip x_t + c_out v_theta(x_t, t, label),     c_skip = alpha_t, c_out = -sigma_t

holds f(x, 0) = x but for sigma_0 = 0.01 and is the teacher's own reading of v as the data, so the student starts from
the teacher's weights. A third of the pairs is at the first time, the rest spread evenly over all times.

Loss: the pseudo-Huber distance of v (Song & Dhariwal, arXiv 2310.14189) and, weighted, the mean square distance of
f and the end in the features of the shipped guide at t = 0 (not of the classifier that judges). The weights kept are
an exponential moving average. A run that was stopped goes on from its last checkpoint; random draws depend on
(seed, step) alone.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...engine.atomic import replacing
from ...engine.compiler.compile import compile
from . import load
from .fashion import NO_LABEL, FashionUNet
from .fashion_guide import load_guide
from .train_fashion import linear_schedule
from .training import Losses, Pace, Training

TIMES = (999, 916, 832, 749, 666, 582, 499, 416, 332, 249, 166, 82, 30)
SOLVER = "deis:order=3"
BLOCK = 100  # trajectories made and kept together
FIRST_SHARE = 1 / 3  # of the pairs, at the first time
LABELS = 11  # ten classes and none
GUIDANCE = 1.5  # of the teacher, so that the student needs none
PACE = Pace(learning_rate=1e-3, warmup_steps=100, decay=0.5, ema_rate=0.998)
HUBER = 0.01  # the pseudo-Huber loss is quadratic below this root mean square
PERCEPTUAL_WEIGHT = 0.1


@torch.inference_mode()
def trajectories(teacher: FashionUNet, block: int) -> np.ndarray:
    """float16 [BLOCK, 1 + len(TIMES), 1, 28, 28]: the states at TIMES and the end of the block's noises.

    Trajectory i of the block has the noise of seed (block, i) and label (BLOCK block + i) mod LABELS.
    """
    program = compile(SOLVER, "linear:1000", len(TIMES), grid=(*TIMES, -1), prediction="v")
    generator = torch.Generator().manual_seed(1_000_000 + block)
    noise = torch.randn((BLOCK, 1, 28, 28), generator=generator).contiguous(memory_format=torch.channels_last)
    label, states = labels_of(block), []

    def network(x_t: Tensor, t: float) -> Tensor:
        states.append(x_t)
        time = torch.full((BLOCK,), float(t))
        free, bound = (teacher(x_t, time, of) for of in (torch.full_like(label, NO_LABEL), label))
        return free + GUIDANCE * (bound - free)

    end = program.evaluate(network, noise)
    return torch.stack([*states, end.clamp(-1, 1)], dim=1).half().numpy()


def labels_of(block: int) -> Tensor:
    """int64 [BLOCK]"""
    return (block * BLOCK + torch.arange(BLOCK)) % LABELS


class Perceptual(nn.Module):
    """forward(x, y [B, 1, 28, 28]) -> [B]: mean square distance in the guide's features, stage by stage."""

    def __init__(self) -> None:
        super().__init__()
        self.guide = load_guide().requires_grad_(False)

    def features(self, x: Tensor) -> list[Tensor]:
        guide = self.guide
        angles = torch.zeros(len(x), len(guide.frequencies))
        embedding = guide.time(torch.cat((angles.cos(), angles.sin()), dim=1))
        y, found = functional.pixel_unshuffle(x, 2), []
        for stage in guide.stages:
            y = stage(y, embedding)
            found.append(y)
        return found

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        pairs = zip(self.features(x), self.features(y), strict=True)
        return torch.stack([(one - other).square().mean((1, 2, 3)) for one, other in pairs]).sum(0)


@final
class Distillation:
    """The losses of a student on states of the teacher's trajectories."""

    def __init__(self, student: FashionUNet) -> None:
        self.student = student
        self.perceptual = Perceptual()
        alphas, sigmas = linear_schedule()
        self.alpha, self.sigma = alphas[list(TIMES)], sigmas[list(TIMES)]

    def losses(self, x_t: Tensor, place: Tensor, label: Tensor, end: Tensor) -> Losses:
        """On states x_t at TIMES[place] and the ends of their trajectories; reported are the two parts."""
        alpha_t, sigma_t = self.alpha[place, None, None, None], self.sigma[place, None, None, None]
        v = self.student(x_t, torch.tensor(TIMES)[place].float(), label)
        square = (v - (alpha_t * x_t - end) / sigma_t).square().mean((1, 2, 3))
        distance = ((square + HUBER**2).sqrt() - HUBER).mean()
        perceptual = self.perceptual(alpha_t * x_t - sigma_t * v, end).mean()
        return distance + PERCEPTUAL_WEIGHT * perceptual, [distance, perceptual]


def teach(given: argparse.Namespace, teacher: FashionUNet) -> np.ndarray:
    """All trajectories float16 [n, 1 + len(TIMES), 1, 28, 28]; blocks that lie in `given.out` are not made again."""
    found = []
    for block in range(given.trajectories // BLOCK):
        path = given.out / f"trajectories-{block:03d}.npy"
        if not path.exists():
            with replacing(path) as part, open(part, "wb") as file:
                np.save(file, trajectories(teacher, block))
            print(path.name, flush=True)
        found.append(np.load(path))
    return np.concatenate(found)


def distil(given: argparse.Namespace) -> None:
    """Distil up to `given.steps` steps from the last checkpoint, then write weights and record."""
    given.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(given.seed)
    teacher = load("fashion").source
    assert isinstance(teacher, FashionUNet)
    start = time.process_time()
    pairs = torch.from_numpy(teach(given, teacher.to(memory_format=torch.channels_last)))  # pyright: ignore[reportCallIssue]
    labels = torch.cat([labels_of(block) for block in range(given.trajectories // BLOCK)])
    student = FashionUNet()
    student.load_state_dict(teacher.state_dict())
    student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch's overloads leave it out
    distillation = Distillation(student)
    training = Training(student, given, PACE)
    training.state["seconds"] += time.process_time() - start

    def losses(generator: torch.Generator) -> Losses:
        """Of one draw of trajectories and times."""
        index = torch.randint(len(pairs), (given.batch,), generator=generator)
        place = torch.randint(len(TIMES), (given.batch,), generator=generator)
        place[: round(FIRST_SHARE * given.batch)] = 0
        x_t = pairs[index, place].float().contiguous(memory_format=torch.channels_last)
        return distillation.losses(x_t, place, labels[index], pairs[index, -1].float())

    training.run(losses)
    facts = {"teacher": "fashion", "solver": SOLVER, "guidance": GUIDANCE, "times": TIMES}
    trained = {"trajectories": given.trajectories, "perceptual_weight": PERCEPTUAL_WEIGHT}
    training.finish("fashion_distilled", {**facts, **trained})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Distil the shipped fashion network to a consistency model.")
    parser.add_argument(
        "--out", type=Path, default=Path("fashion-distilled"), help="trajectories, checkpoints, weights"
    )
    parser.add_argument("--trajectories", type=int, default=5_000)
    parser.add_argument("--steps", type=int, default=1_600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    distil(parser.parse_args())
