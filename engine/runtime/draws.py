"""The noises that a stochastic program adds on the way: from the samples' seeds, or given by the caller.

Draw n + 1 of a seed (engine/philox.py) is the xi that follows evaluation n, so a seed names one image whatever the
sampler and the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from ..compiler.program import Program
from ..contract.contract import Contract
from ..errors import InputError
from .noise import check_finite, fill_noise


@final
@dataclass(frozen=True, eq=False)
class Draws:
    """Where the xi of m samples come from: seeds uint64 [m], or given float32 [K, m, elements]; one of them None."""

    seeds: NDArray[np.uint64] | None
    given: torch.Tensor | None

    @property
    def count(self) -> int:
        """m"""
        if self.seeds is not None:
            return len(self.seeds)
        return 0 if self.given is None else self.given.shape[1]

    def part(self, which: slice) -> Draws:
        """Those of some of the samples."""
        return Draws(
            None if self.seeds is None else self.seeds[which],
            None if self.given is None else self.given[:, which],
        )

    def fill(self, xi: NDArray[np.float32], n: int, place: int) -> None:
        """Write the noise after evaluation n, the program's draw number `place`, into xi [m, elements]."""
        if self.seeds is not None:
            fill_noise(xi, self.seeds, n + 1)
        else:
            assert self.given is not None
            xi[:] = self.given[place].numpy()


def check_draws(
    program: Program,
    contract: Contract,
    seeds: NDArray[np.uint64] | None,
    steps_noise: Any,
    count: int,
    device: torch.device,
) -> Draws | None:
    """The draws of `count` samples; None for a program that draws nothing. Raises InputError."""
    if steps_noise is None:
        if program.noises and seeds is None:
            raise InputError(
                f"noise with {program.solver}, which draws {program.noises} more on the way; "
                "give seeds= beside it, one a sample, or steps_noise="
            )
        if program.noises and seeds is not None and len(seeds) != count:
            raise InputError(f"{len(seeds)} seeds beside noise for {count} samples; give one a sample")
        return Draws(seeds, None) if program.noises else None
    try:
        given = (
            steps_noise.detach() if isinstance(steps_noise, torch.Tensor) else torch.from_numpy(np.asarray(steps_noise))
        )
    except (TypeError, ValueError):
        kind = type(steps_noise).__name__
        raise InputError(f"steps_noise of type {kind}, expected a tensor or an array of floats") from None
    shape = (program.noises, count, *contract.shape)
    if not given.is_floating_point() or tuple(given.shape) != shape:
        raise InputError(
            f"steps_noise {list(given.shape)} of {given.dtype}; {program.solver} takes floats of shape {list(shape)}"
        )
    if not program.noises:
        return None
    given = given.to(device=device, dtype=torch.float32)
    check_finite(given)
    return Draws(None, given.reshape(program.noises, count, math.prod(contract.shape)).contiguous())
