"""How long work reports its progress: the types of the functions that callers may pass."""

from __future__ import annotations

from collections.abc import Callable

Stages = Callable[[str, int, int], None]  # (stage, steps done, steps expected)
Counts = Callable[[int, int], None]  # (done, expected)
Lines = Callable[[str], None]  # (one line of what happens now)
BuildProgress = Stages  # of a TensorRT plan: the stages are TensorRT's own phases
