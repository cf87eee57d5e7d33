"""What goes between a request and the engine's thread: an Order, the Drawn that answers it, and why there is none.

All of it is plain data, so that it can cross to another machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray


@final
@dataclass(frozen=True)
class Start:
    """How sampling starts from a picture, as `Engine.images` takes it; strength None: the engine's default."""

    strength: float | None = None
    counts: str = "part"
    masked: bool = False


@final
@dataclass(frozen=True, eq=False)
class Picture:
    """What an order starts from: image uint8 [H, W, C]; mask uint8 [H, W], 255 where it is drawn anew, or None."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None = None


@final
@dataclass(frozen=True)
class Kind:
    """What all samples of one batch share: the sampler (a name of `samplers`), its NFE, and pixels or samples.

    Guidance is a condition of its own for each sample, so it is no part of this. given: of what a prompt stands for,
    the names of the conditions that came as numbers, and "negative_prompt" where there is one. start: how they start
    from pictures, which are those of each order; None from noise alone.
    """

    sampler: str
    nfe: int
    pixels: bool
    given: tuple[str, ...] = ()
    start: Start | None = None


@final
@dataclass(frozen=True)
class Words:
    """The texts of every sample of an order, for engines that hold text encoders; None: numbers, or none at all."""

    prompt: str | None
    negative: str | None = None


@final
@dataclass(frozen=True, eq=False)
class Order:
    """n samples: seeds uint64 [n], conditions [n, ..] by the contract's names, all of them checked.

    picture: where kind.start says so, the same for all samples.
    """

    kind: Kind
    seeds: NDArray[np.uint64]
    conditions: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    words: Words | None = None
    picture: Picture | None = None

    @property
    def count(self) -> int:
        return len(self.seeds)


@final
@dataclass(frozen=True)
class Timing:
    """Milliseconds of one order: `wait` in the queue until its first batch, `sample` inside the engine.

    batches: (samples, bucket) of each batch whose first sample is this order's, so that every batch is counted once.
    shared: the most samples, of any order, that stood in a batch with this one.
    """

    wait_ms: float
    sample_ms: float
    batches: tuple[tuple[int, int], ...]
    shared: int


@final
@dataclass(frozen=True, eq=False)
class Drawn:
    """float32 [n, *shape], or with pixels uint8 [n, H, W, C], in the order of the seeds."""

    rows: NDArray[Any]
    timing: Timing


class NotDrawnError(Exception):
    """Why an order was not drawn, for the client: `status` is HTTP's, `retry_s` the seconds of Retry-After."""

    def __init__(self, status: int, message: str, retry_s: int | None = None) -> None:
        super().__init__(status, message, retry_s)  # all of it, so that a pickled copy is whole
        self.status = status
        self.message = message
        self.retry_s = retry_s
