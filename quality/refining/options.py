"""What a refinement may do, and how many seeds it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from torch import nn

from ...engine.contract.contract import Contract
from ..perceptual.layers import Layers
from ..sampling.pool import Floats

# Seeds that refining fits and watches. A few seeds carry most of the error, so it needs more than ranking does: with 32
# the MNIST network at 8 NFE came to 0.023 on the training seeds and 0.047 on others.
TRAINING, VALIDATION = 96, 32
FEWEST = 16, 8  # of these, that a small budget leaves
PERCEPTUAL = 512  # training seeds where features count
BARELY = 0.4  # of the seeds that fit a table well, which a small budget has to pay for
FIT = 8  # elements of the samples for each parameter of a table


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
        """Whether gradients come through the network and the features, which is worth it for features alone."""
        return self.module is not None and self.layers is not None and self.layers.differentiable


def sized(
    calibration: int, affordable: int | None, reference: int, elements: int, nfe: int, *, perceptual: bool = False
) -> tuple[int, int]:
    """(training, validation) seeds for so many affordable evaluations, the reference being a fifth of them at most.

    Samples of few elements take more seeds, so that the table has fewer parameters than there is to fit.
    """
    training, validation = (PERCEPTUAL, PERCEPTUAL // 4) if perceptual else (TRAINING, VALIDATION)
    if affordable is not None:
        both = affordable // (5 * reference)
        training = max(FEWEST[0], min(training, both * 3 // 4))
        validation = max(FEWEST[1], min(validation, training // 3))
    needed = seeds_to_fit(nfe, elements)
    if affordable is not None:
        needed = min(needed, max(math.ceil(BARELY * needed), affordable // (3 * reference)))
    return max(training, calibration, needed), validation


def seeds_to_fit(nfe: int, elements: int) -> int:
    """The fewest seeds whose elements are FIT times the parameters of a whole table."""
    parameters = (nfe + 1) * (nfe + 2) // 2 + nfe
    return math.ceil(FIT * parameters / elements)
