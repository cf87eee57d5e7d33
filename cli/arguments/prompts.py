"""Prompts and a picture to start from, as `pfdiff sample` is given them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...engine.errors import InputError

if TYPE_CHECKING:
    from ...engine.contract import Contract

ASKED = ("prompt", "negative_prompt", "image", "strength", "strength_counts")


def asked_from(typed: Mapping[str, str], contract: Contract) -> tuple[list[str], dict[str, Any]]:
    """(arguments that are conditions of the network, the rest as keywords of `Engine.sample`). Raises InputError."""
    names = {name for one in contract.conditions for name in (one.name, one.alias)}
    extra = [word for name, text in typed.items() if name in names for word in (f"--{name}", text)]
    asked: dict[str, Any] = {name: text for name, text in typed.items() if name not in names}
    if "strength" in asked:
        try:
            asked["strength"] = float(asked["strength"])
        except ValueError:
            raise InputError(f"--strength '{asked['strength']}': expected a number, such as 0.6") from None
    if "image" in asked:
        asked["image"] = picture_from("--image", asked["image"])
    return extra, asked


def picture_from(option: str, text: str) -> Any:
    """uint8 [H, W, 3] or [H, W, 1] of a picture, or the array of an .npy. Raises InputError."""
    import numpy as np

    path = Path(text)
    if not path.is_file():
        raise InputError(f"{option} '{text}' does not exist; give a picture, or an array .npy")
    if path.suffix == ".npy":
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{option} '{text}' is no array of numbers; write it with numpy.save") from error
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return np.atleast_3d(np.asarray(picture.convert("L" if picture.mode in ("1", "L") else "RGB")))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{option} '{text}' is no picture ({' '.join(str(error).split())[:120]})") from error
