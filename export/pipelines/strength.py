"""A path with a strength behind a colon, as --lora and --controlnet take it."""

from __future__ import annotations

import math
from pathlib import Path

from ...engine.errors import InputError


def with_strength(what: str, text: str) -> tuple[Path, float]:
    """(path, strength) of 'PATH:0.8', strength 1 of 'PATH'. A path that exists as it stands has no strength behind it.

    Raises InputError.
    """
    path, colon, number = text.rpartition(":")
    if not colon or Path(text).exists() or "/" in number or "\\" in number:
        return Path(text), 1.0
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan
    if not math.isfinite(strength):
        raise InputError(f"{what} '{text}': '{number}' is no strength, expected a number, such as {path}:0.8")
    return Path(path), strength
