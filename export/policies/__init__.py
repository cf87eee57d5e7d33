"""Robot policies: what others have saved, and what users describe, becomes a network with observations and actions."""

from __future__ import annotations

from typing import Any

from ..described import Described
from . import diffusion_policy, lerobot

READERS = (lerobot.read, diffusion_policy.read)


def open_policy(source: Any) -> Described | None:
    """The policy in `source`, a folder or an object, None where that is none of theirs. Raises InputError."""
    return next((found for read in READERS if (found := read(source)) is not None), None)
