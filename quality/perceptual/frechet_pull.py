"""The pull of a Frechet distance on single samples, from the statistics of many others.

    FD = |mu - mu_r|^2 + tr(C + C_r - 2 (C C_r)^1/2),   d FD / d phi_i = 2/n [(mu - mu_r) + G (phi_i - mu)],
    G = 1 - C_r^1/2 (C_r^1/2 C C_r^1/2)^-1/2 C_r^1/2

mu and C come from the last few thousand samples of training, so a batch of any size has the gradient of the distance of
thousands. phi: features float64 [n, d]. `evaluate` and `tune` measure the distance by quality/distances/metrics.py.
"""

from __future__ import annotations

from typing import final

import numpy as np

from ...engine.compiler.schedule import Float64s

FLOOR = 1e-9  # of the largest eigenvalue, below which a direction is not divided by


@final
class FrechetPull:
    """Towards `real` features [m, d]; `add` samples, then `gradient` of the distance for each of a batch."""

    def __init__(self, real: Float64s, keep: int = 2000) -> None:
        self.scale = 1 / np.maximum(real.std(0), 1e-6)  # no feature counts more for its unit
        real = real * self.scale
        self.mean = real.mean(0)
        self.covariance = np.cov(real, rowvar=False)
        self.root = _power(self.covariance, 0.5)
        self._kept: list[Float64s] = []
        self._keep = keep

    def add(self, features: Float64s) -> None:
        """Remember these, and forget the oldest beyond what is kept."""
        self._kept.append(features * self.scale)
        while sum(map(len, self._kept[1:])) >= self._keep:
            self._kept.pop(0)

    def __len__(self) -> int:
        return sum(map(len, self._kept))

    def _statistics(self) -> tuple[Float64s, Float64s]:
        found = np.concatenate(self._kept)
        return found.mean(0), np.cov(found, rowvar=False)

    def distance(self) -> float:
        """Of what is kept, which is biased upwards while it is little."""
        return self._distance(*self._statistics())

    def distance_of(self, features: Float64s) -> float:
        """Of these features [m, d] alone."""
        features = features * self.scale
        return self._distance(features.mean(0), np.cov(features, rowvar=False))

    def _distance(self, mean: Float64s, covariance: Float64s) -> float:
        cross = _power(self.root @ covariance @ self.root, 0.5)
        away = float(np.sum((mean - self.mean) ** 2))
        return away + float(np.trace(covariance) + np.trace(self.covariance) - 2 * np.trace(cross))

    def gradient(self, features: Float64s) -> Float64s:
        """d FD / d phi_i [b, d], times the number of samples: the mean over a batch has the distance's own slope."""
        mean, covariance = self._statistics()
        inner = _power(self.root @ covariance @ self.root, -0.5)
        pull = np.eye(len(mean)) - self.root @ inner @ self.root
        return 2 * ((mean - self.mean) + (features * self.scale - mean) @ pull) * self.scale


def _power(matrix: Float64s, power: float) -> Float64s:
    """Of a symmetric matrix without negative eigenvalues but for rounding."""
    values, vectors = np.linalg.eigh(matrix)
    values = np.maximum(values, FLOOR * max(float(values[-1]), 1e-30))
    return (vectors * values**power) @ vectors.T
