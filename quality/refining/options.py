"""What a refinement may do, and what it makes small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import nn

from ...engine.cache import content_key
from ...engine.compiler.program import Program
from ...engine.contract.contract import Contract
from ...engine.progress import Stages
from ..criteria.error import ErrorCriterion
from ..perceptual.frechet_pull import FrechetPull
from ..perceptual.layers import Layers
from ..ranking import Ranked
from ..sampling.pool import Floats
from .aim import Aim, as_tensor

# Seeds that refining fits and watches. A few seeds carry most of the error, so it needs more than ranking does: with 32
# the MNIST network at 8 NFE came to 0.023 on the training seeds and 0.047 on others.
TRAINING, VALIDATION = 256, 96
# Small samples end in another mode than the reference's more often, and those few carry the error. On a mixture with 64
# elements 256 seeds gave tables of 3 evaluations an error of 0.13, 2,048 seeds 0.11, at 4 0.14 and 0.09.
ELEMENTS, MOST_TRAINING = 1 << 17, 2048  # of all training seeds together, where gradients are known; and their bound
PULL = 2.0  # weight of the distribution, beside 1.3 of pixels and layers
ENOUGH = 3  # samples for each feature, to tell a distribution
BATCH = 100
Found = tuple[Program, dict[str, Any]]  # a refined program and what refining did


@final
@dataclass(frozen=True)
class Refining:
    """What a refinement may do.

    training, validation: seeds of its own. buffers: of the program, None for all that a table takes, at most as many as
    a program may have. layers: None, or what is compared beside pixels. real: None, or features [n, d] of real pictures
    whose distribution the samples' should have; by default the reference's. module: None, or the network as a module
    with conditions [seeds, ...], through which gradients go.
    """

    training: int = TRAINING
    validation: int = VALIDATION
    buffers: int | None = None
    layers: Layers | None = None
    real: Floats | None = None
    module: nn.Module | None = None
    contract: Contract | None = None
    conditions: tuple[np.ndarray, ...] = ()

    @property
    def by_gradient(self) -> bool:
        """Whether gradients can come through the network, and through the features where there are any."""
        return self.module is not None and (self.layers is None or self.layers.differentiable)


@final
@dataclass(frozen=True)
class Task:
    """A sampler to refine: the rows of the criterion's pool that are fitted and watched, and what may be done."""

    criterion: ErrorCriterion
    start: Ranked
    training: np.ndarray
    validation: np.ndarray
    options: Refining
    tell: Stages

    def key(self, *further: Any) -> str:
        """Of the journal: what a method's steps depend on."""
        layers, real = self.options.layers, self.options.real
        words = [self.start.program.digest, self.criterion.key(self.training), self.criterion.key(self.validation)]
        pictures = [] if real is None else [np.ascontiguousarray(real, np.float32)]
        return content_key(*words, *further, None if layers is None else layers.digest, *pictures)


def aim_of(criterion: ErrorCriterion, options: Refining) -> Aim:
    """Pixels, layers, and the pull of a distribution where its features are enough to tell it."""
    targets, layers, real = as_tensor(criterion.targets, criterion.pool.shape), options.layers, options.real
    if layers is not None and real is None:
        with torch.no_grad():
            real = torch.cat([layers(part)[-1] for part in targets.split(BATCH)]).numpy()
    told = real is not None and len(real) > ENOUGH * real.shape[1] and options.by_gradient
    pull = FrechetPull(real.astype(np.float64)) if real is not None and told else None
    return Aim(targets, criterion.data_range, layers, pull, PULL)
