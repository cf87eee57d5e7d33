"""What makes conditions before the network runs: text encoders of prompts, an encoder of observations.

Both are quantised alike (encoders.py), so both say what there is to quantise, and what their conditions are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, final

import numpy as np
from numpy.typing import NDArray

from ....engine.contract.contract import Contract, ObservationContract, TextEncoderContract

Array = NDArray[Any]


@final
@dataclass(frozen=True, eq=False)
class Part:
    """An encoder. place: its file in the engine; exact: the float32 one; inputs: [m, ...], what it is given."""

    name: str
    place: Path
    exact: Path
    contract: TextEncoderContract | ObservationContract
    inputs: Array


class Makers(Protocol):
    """Encoders whose sum, or whose only one, makes `conditions`."""

    @property
    def conditions(self) -> tuple[str, ...]: ...

    def parts(self) -> list[Part]: ...

    def tables(self, contract: Contract) -> dict[str, Array]:
        """By condition float32 [m, *shape]; seed s takes row s mod m. Raises InputError, EngineFileError."""
        ...

    def of_files(self, paths: Mapping[str, Path]) -> Self:
        """The same with other files, by the name of the part."""
        ...


def split(rows: Array, names: Sequence[str], contract: Contract) -> dict[str, Array]:
    """Encoded [m, size] by condition, [m, *shape] each."""
    shapes = {one.name: one.shape for one in contract.conditions}
    found, start = {}, 0
    for name in names:
        size = math.prod(shapes[name])
        found[name] = np.asarray(rows)[:, start : start + size].reshape(-1, *shapes[name])
        start += size
    return found
