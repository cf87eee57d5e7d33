"""What a sample looks like, as maps and vectors that a difference can be taken of, with gradients.

    layers = layers_of("fashion:second", data_range)(x)      # x [b, C, H, W] -> a list of [b, ...]

A network's features and maps, each layer scaled later by its own size; without a network a fixed bank of filters at
several scales, whose local energies see what pixels do not: that a blurred sample lacks edges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...engine.cache import content_key
from ...engine.errors import InputError

SCALES = 3  # of the bank, each half the last one's size
SMALLEST = 4  # side of a map that still has edges
EPSILON = 1e-3  # under the root of an energy, in the data's unit


@final
@dataclass(frozen=True, eq=False)
class Layers:
    """run(x [b, C, H, W] in the data's range) -> layers [b, ...], the features [b, d] last.

    differentiable: whether x's gradient comes back through them.
    """

    name: str
    digest: str
    run: Callable[[Tensor], list[Tensor]]
    differentiable: bool = True

    def __call__(self, x: Tensor) -> list[Tensor]:
        return self.run(x)


BANK = "filters"


def filter_bank(channels: int) -> Layers:
    """Four derivatives at each scale as energies, and the pixels of the coarse scales; pooled: their means and roots.

    Needs no training: a wavelet-like pyramid (Portilla & Simoncelli, IJCV 40, 2000) without its phases.
    """
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    slant = torch.tensor([[-2.0, -1.0, 0.0], [-1.0, 0.0, 1.0], [0.0, 1.0, 2.0]]) / 8
    kernels = torch.stack([across, across.T, slant, slant.flip(0)])
    weight = kernels[:, None].repeat(channels, 1, 1, 1)

    def run(x: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        pooled: list[Tensor] = []
        for scale in range(SCALES):
            if scale:
                if min(x.shape[-2:]) < 2 * SMALLEST:
                    break
                x = functional.avg_pool2d(x, 2)
                found.append(x)
            edges = functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), weight, groups=channels)
            energy = (edges.square() + EPSILON**2).sqrt()
            found.append(functional.avg_pool2d(energy, 2, ceil_mode=True))
            pooled += [energy.mean((2, 3)), edges.square().mean((2, 3)).add(EPSILON**2).sqrt(), x.mean((2, 3))]
        return [*found, torch.cat(pooled, 1)]

    return Layers(BANK, content_key("filter bank 1", channels), run)


def of_module(name: str, digest: str, module: nn.Module, scale: Callable[[Tensor], Tensor]) -> Layers:
    """Of a user's forward(x) -> features [b, d], or (features, maps [b, c, h, w])."""
    module = module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)

    def run(x: Tensor) -> list[Tensor]:
        answer = module(scale(x))
        parts = list(answer) if isinstance(answer, tuple) else [answer]
        if parts[0].ndim != 2 or len(parts[0]) != len(x):
            raise InputError(f"features '{name}' gave {list(parts[0].shape)} for {len(x)} pictures, expected [n, d]")
        return [*parts[1:], parts[0]]

    return Layers(name, digest, run)


def of_onnx(name: str, digest: str, session: Any, outputs: Sequence[str], scale: Callable[[Tensor], Tensor]) -> Layers:
    """Of an ONNX judge: its maps, if it has them, and its features, `outputs` with the features first."""
    given = session.get_inputs()[0].name

    def run(x: Tensor) -> list[Tensor]:
        answers = session.run(list(outputs), {given: np.ascontiguousarray(scale(x.detach()).numpy())})
        return [torch.from_numpy(one) for one in (*answers[1:], answers[0])]

    return Layers(name, digest, run, differentiable=False)


def together(parts: Sequence[Layers]) -> Layers:
    """The layers of several, with their features as one vector at the end."""

    def run(x: Tensor) -> list[Tensor]:
        found = [part(x) for part in parts]
        features = torch.cat([layers[-1] for layers in found], 1)
        return [*(one for layers in found for one in layers[:-1]), features]

    name, digest = " and ".join(part.name for part in parts), content_key([part.digest for part in parts])
    return Layers(name, digest, run, differentiable=all(part.differentiable for part in parts))


def of_steps(name: str, digest: str, steps: Sequence[Callable[[Tensor], Tensor]]) -> Layers:
    """Of a network in parts, each part's output a layer, the last one the features."""

    def run(x: Tensor) -> list[Tensor]:
        found = []
        for step in steps:
            x = step(x)
            found.append(x)
        return found

    return Layers(name, digest, run)
