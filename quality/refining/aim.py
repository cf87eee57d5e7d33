"""What a refinement makes small: pixels, features and a distribution, each counted in its value at the start.

    loss = PIXELS |x - x*|^2 / at the start + sum over layers |phi(x) - phi(x*)|^2 / at the start    (means over layers)
           + PULL FD(phi(x), phi of real pictures or of the reference) / at the start

x: the clipped sample; x*: the reference of the same seed, clipped. Without features the loss is that of pixels alone.
What lies outside the data's range, where clipping hides it, counts by a tenth of its distance.
"""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from ..perceptual.frechet_pull import FrechetPull
from ..perceptual.layers import Layers

OUTSIDE = 0.1
PIXELS = 0.3  # beside features


def as_tensor(values: Any, shape: tuple[int, ...] | None = None) -> Tensor:
    """An array as a tensor, its rows in `shape`."""
    found = torch.from_numpy(np.ascontiguousarray(values))
    return found if shape is None else found.reshape(-1, *shape)


@final
class Aim:
    """targets [n, *shape] clipped; layers: None for pixels alone; pull: None, or towards what features' distribution.

    The weights are set by `weigh`, from samples of the table that refining begins with.
    """

    def __init__(
        self,
        targets: Tensor,
        data_range: tuple[float, float],
        layers: Layers | None = None,
        pull: FrechetPull | None = None,
        strength: float = 1.0,
    ) -> None:
        self.targets = targets
        self.low, self.high = data_range
        self.layers = layers
        self.pull = pull
        self.strength = strength
        self.pixel_weight = 1.0
        self.layer_weights: list[float] = []
        self.pull_weight = 0.0

    def weigh(self, samples: Tensor, rows: Tensor) -> None:
        """Set the weights so that each part is 1 for these samples [m, *shape] of the seeds `rows`, m at least 16."""
        with torch.no_grad():
            pixels = float(self._pixels(samples, rows))
            if self.layers is None:
                self.pixel_weight = 1 / max(pixels, 1e-12)
                return
            self.pixel_weight = PIXELS / max(pixels, 1e-12)
            ours, theirs = self.layers(self._clipped(samples)), self.layers(self.targets[rows])
            errors = [float((a - b).square().mean()) for a, b in zip(ours, theirs, strict=True)]
            self.layer_weights = [1 / (len(errors) * max(error, 1e-12)) for error in errors]
            if self.pull is not None:
                self.pull.add(ours[-1].double().numpy())
                self.pull_weight = self.strength / max(self.pull.distance(), 1e-12)

    def loss(self, samples: Tensor, rows: Tensor) -> Tensor:
        """Of a batch [m, *shape] of the seeds `rows`, with gradients."""
        total = self.pixel_weight * self._pixels(samples, rows)
        if self.layers is None:
            return total
        ours = self.layers(self._clipped(samples))
        with torch.no_grad():
            theirs = self.layers(self.targets[rows])
        for weight, a, b in zip(self.layer_weights, ours, theirs, strict=True):
            total = total + weight * (a - b).square().mean()
        if self.pull is not None and self.pull_weight:
            features = ours[-1]
            here = features.detach().double().numpy()
            self.pull.add(here)
            slope = torch.from_numpy(self.pull.gradient(here)).float()
            # A sum whose value is nothing and whose gradient is the distance's.
            total = total + self.pull_weight * ((features - features.detach()) * slope).sum(1).mean()
        return total

    def value(self, samples: Tensor, rows: Tensor) -> float:
        """The loss of samples [m, *shape] with the distance itself in it, of these samples alone; 1 for each part at
        the start. m has to be well above the number of features for the distance to mean something.
        """
        with torch.no_grad():
            total = self.pixel_weight * float(self._pixels(samples, rows))
            if self.layers is None:
                return total
            ours, theirs = self.layers(self._clipped(samples)), self.layers(self.targets[rows])
            pairs = zip(self.layer_weights, ours, theirs, strict=True)
            total += sum(weight * float((a - b).square().mean()) for weight, a, b in pairs)
            if self.pull is not None and self.pull_weight:
                total += self.pull_weight * self.pull.distance_of(ours[-1].double().numpy())
            return total

    def residual(self, samples: Tensor, rows: Tensor) -> Tensor:
        """[m, elements]: what the squares of the loss are of, pixels and features; their sum over all is m times it."""
        inside, beyond = self._clipped(samples) - self.targets[rows], self._beyond(samples)
        # The root of inside^2 + (OUTSIDE beyond)^2, with inside's sign where nothing is beyond.
        whole = torch.where(beyond == 0, inside, torch.hypot(inside, OUTSIDE * beyond) * beyond.sign())
        parts = [whole.flatten(1) * (self.pixel_weight / whole[0].numel()) ** 0.5]
        if self.layers is not None:
            ours, theirs = self.layers(self._clipped(samples)), self.layers(self.targets[rows])
            for weight, a, b in zip(self.layer_weights, ours, theirs, strict=True):
                parts.append((a - b).flatten(1) * (weight / a[0].numel()) ** 0.5)
        return torch.cat(parts, 1)

    def _clipped(self, samples: Tensor) -> Tensor:
        return samples.clamp(self.low, self.high) if np.isfinite(self.low) else samples

    def _beyond(self, samples: Tensor) -> Tensor:
        return samples - self._clipped(samples)

    def _pixels(self, samples: Tensor, rows: Tensor) -> Tensor:
        inside = (self._clipped(samples) - self.targets[rows]).square().mean()
        return inside + (OUTSIDE * self._beyond(samples)).square().mean()
