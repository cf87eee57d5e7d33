"""What a mask keeps in one batch on a CPU: the arrays that the loop reads, and the update of state 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from .masked import Masked

if TYPE_CHECKING:
    from ..loop import Tables


@final
@dataclass(frozen=True, eq=False)
class Kept:
    """factors float32 [N, 2] of `Tables.known`; picture, noise float32, mask uint8 [elements] of the whole bucket."""

    factors: NDArray[np.float32]
    picture: NDArray[np.float32]
    noise: NDArray[np.float32]
    mask: NDArray[np.uint8]

    @classmethod
    def of(cls, tables: Tables, masked: Masked, noise: NDArray[np.float32], elements: int) -> Kept:
        """Of the first samples of a bucket of `elements`; what else is in it keeps nothing."""
        kept = cls(tables.known, *(np.zeros(elements, np.float32) for _ in range(2)), mask=np.ones(elements, np.uint8))
        given = (masked.picture.numpy(), noise, masked.mask.numpy())
        for array, values in zip(kept.arrays[1:], given, strict=True):
            array[: values.size] = values.reshape(-1)
        return kept

    @property
    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
        """What the compiled walk takes."""
        return self.factors, self.picture, self.noise, self.mask

    def keep(self, s_0: NDArray[np.float32], n: int) -> None:
        """Where the mask is 0, s_0 [m] after evaluation n becomes a x_0 + b noise; after the last a x_0."""
        (a, b), size = self.factors[n], len(s_0)
        known = a * self.picture[:size]
        if n + 1 < len(self.factors):
            known += b * self.noise[:size]
        np.copyto(s_0, known, where=self.mask[:size] == 0)
