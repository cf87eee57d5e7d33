"""engine/tensors.py: what `fill` copies to a device is its own, in pinned memory."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

from pfdiff.engine.tensors import fill


class OnDevice:
    """A CUDA buffer whose copies run later, as a stream's do."""

    is_cuda = True
    dtype = torch.float16

    def __init__(self, rows: int) -> None:
        self.memory = torch.zeros(rows, 3, dtype=self.dtype)
        self.waiting: list[Any] = []

    def __len__(self) -> int:
        return len(self.memory)

    def __getitem__(self, rows: slice) -> Any:
        def copy_(values: torch.Tensor, *, non_blocking: bool) -> None:
            assert non_blocking
            self.waiting.append((rows, values))

        return types.SimpleNamespace(copy_=copy_)


def test_what_the_caller_pinned_may_change_after_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    empty, pinned = torch.empty, []

    def in_pinned_memory(*shape: Any, pin_memory: bool, **settings: Any) -> torch.Tensor:
        assert pin_memory
        pinned.append(empty(*shape, **settings))
        return pinned[-1]

    monkeypatch.setattr(torch, "empty", in_pinned_memory)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)  # as it does with what is pinned already
    buffer, values = OnDevice(2), torch.ones(2, 3, dtype=torch.float16)
    fill(buffer, values)  # type: ignore[arg-type]
    values.zero_()
    [(rows, source)] = buffer.waiting
    assert rows == slice(None, 2, None)
    assert source is pinned[0]
    assert torch.equal(source, torch.ones(2, 3, dtype=torch.float16))
