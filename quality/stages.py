"""How long work reports where it is."""

from __future__ import annotations

from collections.abc import Callable

Stages = Callable[[str, int, int], None]  # (stage, what is done, what is expected; 0 where that is not known)


def silent(stage: str, done: int, expected: int) -> None:
    """No progress shown."""
