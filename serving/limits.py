"""What bounds a server: every size and every wait that a request can ask for.

The queue is counted in samples. With batches of `bucket` samples that take `b` seconds each, nobody who was let in
waits longer than (queue / bucket + 2) * b, plus `max_wait_ms`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import final

from ..engine.contract.contract import Contract
from ..engine.errors import InputError

LEAST_BODY_BYTES = 64 << 10
MOST_BODY_BYTES = 4 << 20
SKIPPED_BODY_BYTES = 64 << 20  # read and thrown away, so that the client gets to see why
NUMBER_BYTES = 26  # a float64 in JSON, with a comma
BODY_SECONDS = 30.0
FORM_BYTES = 64 << 10  # of a form, beside its pictures
MOST_FORM_BYTES = 32 << 20
MOST_NUMBERS = 1 << 18  # in a JSON answer
MOST_PICTURES = 10  # of OpenAI's route, as its own documentation says
MOST_PROMPT_LETTERS = 32_000
MOST_CONNECTIONS = 1024
DRAIN_SECONDS = 60
STUCK_SECONDS = 300.0  # a batch that takes longer makes /healthz say so


@final
@dataclass(frozen=True)
class Limits:
    """queue: samples that may wait for an engine, and in a request. max_wait_ms: how long an order waits for others."""

    queue: int = 64
    max_wait_ms: float = 5.0

    def __post_init__(self) -> None:
        if not 1 <= self.queue <= 65_536:
            raise InputError(f"queue of {self.queue} samples, expected 1 to 65536")
        if not 0 <= self.max_wait_ms <= 10_000:
            raise InputError(f"a wait of {self.max_wait_ms:g} ms, expected 0 to 10000")


def body_bytes(contracts: Iterable[Contract], queue: int) -> int:
    """The largest body worth reading: what `queue` samples of the widest contract need in JSON, within bounds."""
    numbers = max((sum(prod(one.shape) + 1 for one in contract.conditions) for contract in contracts), default=0)
    return min(max(LEAST_BODY_BYTES, queue * (1 + numbers) * NUMBER_BYTES), MOST_BODY_BYTES)


def form_bytes(images: Iterable[tuple[int, int, int] | None]) -> int:
    """The largest form with a picture and a mask [H, W, C] that is worth reading: both as PNG without compression.

    Each has at most four bytes a pixel and one a row; the rest of a PNG is a hundredth at most.
    """
    pixels = max((height * (4 * width + 1) for height, width, _ in filter(None, images)), default=0)
    return min(FORM_BYTES + 2 * pixels + pixels // 50, MOST_FORM_BYTES)
