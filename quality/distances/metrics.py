"""Distances between two sets of feature vectors: Frechet (FD, FID on Inception's), kernel, precision and recall.

    FD   = |mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^1/2)                      Heusel et al., arXiv 1706.08500
    KID  = MMD^2 with k(a, b) = (a.b / d + 1)^3, mean over random subsets          Binkowski et al., arXiv 1801.01401
    precision = share of samples within the manifold of the real, recall the reverse; the manifold of a set is the union
    of the balls around its members that reach to their k-th neighbour             Kynkaanniemi et al., arXiv 1904.06991

FD and KID are torchmetrics'. Precision and recall are written here: torchmetrics has none, torch-fidelity's come with
torchvision, and the package prdc with scikit-learn, for what are two matrices of distances. The gradient of FD, which
refining follows, is in quality/perceptual/frechet_pull.py.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...engine.errors import InputError

if TYPE_CHECKING:
    from torchmetrics.image.fid import FrechetInceptionDistance

Array = NDArray[np.float32]
NEIGHBOURS = 3  # k of the paper
SUBSETS, SUBSET_SIZE = 100, 1000  # of KID, its paper's
BLOCK_ELEMENTS = 1 << 24  # of a block of distances, 64 MiB


@final
class Given(nn.Module):
    """Passes features through, where torchmetrics expects the network that makes them."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


@final
class FrechetDistance:
    """To one set of real features [n, d], of which mean and covariance are kept."""

    def __init__(self, real: Array) -> None:
        self._metric: FrechetInceptionDistance = _torchmetrics("image.fid").FrechetInceptionDistance(
            feature=Given(real.shape[1]), reset_real_features=False
        )
        self._update(real, real=True)

    def __call__(self, samples: Array) -> float:
        """Of samples [m, d], m at least 2. Raises InputError when there are fewer."""
        if len(samples) < 2:
            raise InputError(f"a Frechet distance of {len(samples)} samples, expected at least 2; draw more")
        self._metric.reset()
        self._update(samples, real=False)
        return float(self._metric.compute())

    def _update(self, features: Array, *, real: bool) -> None:
        self._metric.update(torch.from_numpy(features).double(), real=real)


def kernel_distance(real: Array, samples: Array, seed: int = 0) -> tuple[float, float]:
    """(mean, standard deviation over subsets) of KID; the subsets are drawn with `seed`."""
    size = min(SUBSET_SIZE, len(real), len(samples))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save", UserWarning)
        metric = _torchmetrics("image.kid").KernelInceptionDistance(Given(real.shape[1]), SUBSETS, size)
        torch.manual_seed(seed)
        metric.update(torch.from_numpy(real).double(), real=True)
        metric.update(torch.from_numpy(samples).double(), real=False)
        mean, spread = metric.compute()
    return float(mean), float(spread)


def thinned(features: NDArray[Any], count: int, seed: int = 0) -> NDArray[Any]:
    """`count` of the vectors, drawn with `seed`: files are often sorted by class, so the first ones will not do."""
    return features[np.sort(np.random.default_rng(seed).choice(len(features), count, replace=False))]


@final
class Manifold:
    """Of features [n, d]: the union of the balls around them that reach to the k-th neighbour; n above k."""

    def __init__(self, features: Array, neighbours: int = NEIGHBOURS) -> None:
        self._centres = torch.from_numpy(features).double()
        # The smallest distance of a centre is that to itself.
        near = [torch.cdist(part, self._centres).kthvalue(neighbours + 1) for part in self._parts(self._centres)]
        self._radii = torch.cat([one.values for one in near])

    def share(self, features: Array) -> float:
        """Of features [m, d], the share that lies inside."""
        points = self._parts(torch.from_numpy(features).double())
        inside = [(torch.cdist(part, self._centres) <= self._radii).any(dim=1) for part in points]
        return float(torch.cat(inside).double().mean())

    def _parts(self, points: Tensor) -> tuple[Tensor, ...]:
        return points.split(max(1, BLOCK_ELEMENTS // len(self._centres)))


def precision_recall(real: Array, samples: Array, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """(precision, recall) of samples [n, d], to be compared with as many real ones. Raises InputError on too few."""
    if min(len(real), len(samples)) <= neighbours:
        got = f"{len(samples)} samples and {len(real)} real pictures"
        raise InputError(f"precision and recall of {got}, expected more than {neighbours} of each; draw more")
    return Manifold(real, neighbours).share(samples), Manifold(samples, neighbours).share(real)


def _torchmetrics(module: str) -> Any:
    """torchmetrics, imported where it is used. Raises InputError when it is not installed."""
    from importlib import import_module

    try:
        return import_module(f"torchmetrics.{module}")
    except ImportError:
        raise InputError("distances need torchmetrics; install it with pip install 'pfdiff[evaluate]'") from None
