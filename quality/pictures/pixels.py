"""Samples become pixels: the only place where floats are turned into uint8 on this side of the engine.

    pixels = round(255 (x - low) / (high - low)), halves to even, clamped to 0..255; NaN becomes 0

in float32 and in that order, so the bits are those of `Engine.images` and of the kernel `images`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...engine.errors import InputError

Pixels = NDArray[np.uint8]  # [n, height, width, channels]
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names by number of channels


def pixels_of(samples: NDArray[np.float32], data_range: tuple[float, float] = (-1.0, 1.0)) -> Pixels:
    """uint8 [n, H, W, C] of samples float32 [n, C, H, W]; the ends of `data_range` become 0 and 255."""
    low, high = data_range
    with np.errstate(invalid="ignore", over="ignore"):
        level = (samples.astype(np.float32, copy=False) - np.float32(low)) * np.float32(255.0 / (high - low))
        level = np.minimum(np.where(level > 0, level, np.float32(0)), np.float32(255))
    return np.ascontiguousarray(np.rint(level).astype(np.uint8).transpose(0, 2, 3, 1))


def checked(images: Pixels) -> Pixels:
    """The same. Raises InputError when these are no pictures."""
    if images.ndim != 4 or images.shape[-1] not in MODES or images.dtype != np.uint8 or not images.size:
        got = f"{images.dtype} {list(images.shape)}"
        raise InputError(
            f"no pictures: got {got}, expected uint8 [n, height, width, 1|3|4]; write .npy or .npz instead"
        )
    return images


def check_shape(shape: tuple[int, ...], *, frames: bool = False) -> None:
    """Whether one sample [C, H, W], or one image of a decoder, is a picture. Raises InputError.

    frames: videos [C, frames, H, W] are taken too.
    """
    if len(shape) == 4 and shape[0] in MODES:
        if frames:
            return
        raise InputError(f"videos of {shape[1]} frames are no grid; write .mp4, .npy or .npz, or name a folder")
    if len(shape) != 3 or shape[0] not in MODES:
        raise InputError(f"no pictures: got samples {list(shape)}, expected [1|3|4, H, W]; write .npy or .npz instead")
