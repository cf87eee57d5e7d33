"""Streams that engines do not share, with torch's turn of 32 replaced by numbers."""

from __future__ import annotations

import gc
import itertools

import pytest
import torch

from pfdiff.engine import streams
from pfdiff.engine.streams import own_stream

DEVICE = torch.device("cuda", 0)


class Stream:
    """As torch gives them: 32 of each priority, in turn."""

    turn = itertools.count()

    def __init__(self, device: torch.device, priority: int = 0) -> None:
        self.cuda_stream = 1 + next(self.turn) % 32 - 100 * priority


@pytest.fixture(autouse=True)
def _torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(streams, "_taken", set())


def test_sixty_four_engines_have_a_stream_each() -> None:
    held = [own_stream(DEVICE) for _ in range(64)]
    assert len({one.cuda_stream for one in held}) == 64
    assert own_stream(DEVICE).cuda_stream in {one.cuda_stream for one in held}


def test_a_stream_that_was_dropped_is_given_again() -> None:
    held = [own_stream(DEVICE) for _ in range(64)]
    free = held.pop(7).cuda_stream
    gc.collect()
    assert own_stream(DEVICE).cuda_stream == free


def test_another_device_has_streams_of_its_own() -> None:
    held = [own_stream(torch.device("cuda", index)) for index in (0, 1) for _ in range(32)]
    assert all(one.cuda_stream <= 32 for one in held)
