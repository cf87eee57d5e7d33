"""Networks with classifier-free guidance inside, and where one half of their doubled batch is enough.

    g = u + s (c - u) = c   where s = 1                             (Ho & Salimans, arXiv 2207.12598)

u and c are evaluated in one batch of twice the size. Backend torch evaluates c alone where the host knows that the
scale s of every sample is 1: it looks before each evaluation on a CPU, before each call on a GPU. Both agree to
rounding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray


@final
@dataclass(frozen=True)
class UnitScale:
    """Where s is 1: where the condition of that name is 1 - offset, and outside of `interval` whatever it is.

    interval: times as the network is fed them, both included; None for all times.
    """

    condition: str
    offset: float = 0.0
    interval: tuple[float, float] | None = None

    def known(self, scale: Any, times: NDArray[Any]) -> NDArray[np.bool_]:
        """Of each of `times`, whether s is known to be 1 for all samples. scale: what they are given, float32 [B].

        A scale on a device is not read, and so not known.
        """
        all_one = isinstance(scale, np.ndarray) and bool((scale + np.float32(self.offset) == 1).all())
        if all_one or self.interval is None:
            return np.full(times.shape, all_one)
        low, high = self.interval
        return np.asarray((times < low) | (times > high))


class Guided(ABC):
    """A module with such guidance. Its copies on other devices are of this class too."""

    unit_scale: UnitScale

    @abstractmethod
    def conditional(self, *inputs: torch.Tensor) -> torch.Tensor:
        """c, from the inputs of the module itself and in its dtype."""
