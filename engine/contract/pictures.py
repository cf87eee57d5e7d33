"""Which arrays are a picture to start from, and its mask: what engine.json decides, before a network is loaded.

Arrays are NumPy's or torch's: what is asked of them here, both answer alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

from ..errors import InputError
from .condition import INPAINTING
from .contract import Contract

FAR = 5.0  # widths of the data's range: no sample is so far from its middle, and floats in 0..255 are
Shape = tuple[int, ...]


@final
@dataclass(frozen=True)
class Pictures:
    """What an engine takes as a picture.

    shape: of one, as the image encoder takes it, or of a sample. is_latent: pixels would have to be encoded, and there
    is nothing here that encodes them.
    """

    contract: Contract
    shape: Shape
    is_latent: bool


def inpaints(contract: Contract) -> bool:
    """Whether the network takes mask and masked picture as conditions."""
    return all(any(one.name == name for one in contract.conditions) for name in INPAINTING)


# The picture.
def is_pixels(given: Any, shown: Shape) -> bool:
    """Whether an array is uint8 [.., H, W, C] of the shape [C, H, W] that is shown."""
    if _dtype(given) != "uint8" or len(shown) != 3:
        return False
    channels, height, width = shown
    return tuple(given.shape[-3:]) == (height, width, channels)


def check_picture(given: Any, pictures: Pictures, count: int, *, called: str = "image") -> None:
    """Raises InputError unless `given` is pixels, floats of the same shape, or samples, of 1 or `count` pictures.

    called: the name that the caller used.
    """
    contract, shown = pictures.contract, pictures.shape
    shape = tuple(given.shape)
    pixels = is_pixels(given, shown)
    if pixels:
        shape = (*shape[:-3], *shown)
    for one in (shown, contract.shape):
        rows = (1, *shape) if shape == one else shape
        if rows[1:] == one and rows[0] in (1, count) and (pixels or _is_float(given)):
            if not pixels:
                _check_floats(given, contract.data_range if one == shown and len(shown) == 3 else None, called)
            return
    if pictures.is_latent:
        raise InputError(
            f"{called}: got {_dtype(given)} {list(given.shape)}, expected latents {list(contract.shape)}: this engine "
            "holds no image encoder; build it with encoders, or give latents"
        )
    raise InputError(f"{called}: {_misfit(given, shown, contract, count)}")


def _check_floats(given: Any, data_range: tuple[float, float] | None, called: str) -> None:
    """Refuses NaN, and floats in 0..255; what overshoots the data's range is left as it is. Raises InputError."""
    if not bool((abs(given) < math.inf).all()):
        raise InputError(f"{called} has NaN or infinite values, expected finite ones")
    if data_range is None:
        return
    low, high = data_range
    if bool((abs(given - (low + high) / 2) > FAR * (high - low)).any()):
        raise InputError(
            f"{called}: got floats in {float(given.min()):.4g}..{float(given.max()):.4g}, expected samples in "
            f"{low:g}..{high:g}; scale them, or give pixels as uint8"
        )


def _misfit(given: Any, shown: Shape, contract: Contract, count: int) -> str:
    floats = f"floats [{count}, {', '.join(map(str, shown))}] in {list(contract.data_range)}"
    pixels = f"uint8 [{count}, {shown[1]}, {shown[2]}, {shown[0]}] or " if len(shown) == 3 else ""
    latent = f", or latents {[count, *contract.shape]}" if shown != contract.shape else ""
    got = f"got {_dtype(given)} {list(given.shape)}, expected {pixels}{floats}{latent}, or one for all samples"
    return f"{got}; {_remedy(tuple(given.shape), shown, count)}" if len(shown) == 3 else got


def _remedy(given: Shape, shown: Shape, count: int) -> str:
    """What to do with pictures of that shape to have them [C, H, W]."""
    channels, height, width = shown
    if given[1:] in ((height, width, channels), shown):
        return f"give 1 or {count}" if count > 1 else "give 1"
    if given[-3:-1] == (height, width) or given[-2:] == (height, width):
        return {1: "make it grey", 3: "make it RGB"}.get(channels, f"give {channels} channels")
    return f"resize it to {width} x {height} pixels"


# The mask.
def check_mask(given: Any, shown: Shape, contract: Contract, count: int, *, called: str = "mask") -> Shape:
    """The size of one mask, [H, W] of the picture or of the samples. Raises InputError for what is no mask.

    A mask is 1 where is drawn anew and 0 elsewhere: of booleans, floats or integers, or uint8 in 0..255.
    """
    _check_levels(given, called)
    plane = len(contract.shape) == 3
    shape = tuple(given.shape)
    for size in (shown[1:], contract.shape[1:]) if plane else (contract.shape,):
        rows = (1, *shape) if shape == size else shape
        if rows[1:] == size and rows[0] in (1, count):
            return size
    size = list(shown[1:] if plane else contract.shape)
    latent = f", {list(contract.shape[1:])} of latents" if plane and shown[1:] != contract.shape[1:] else ""
    remedy = f"resize it to {size[1]} x {size[0]} pixels" if plane else "give one of that shape"
    if list(shape[1:]) == size:
        remedy = f"give 1 or {count}" if count > 1 else "give 1"
    raise InputError(
        f"{called}: got {_dtype(given)} {list(shape)}, expected {size}{latent}, or one for each sample, "
        f"{[count, *size]}; {remedy}"
    )


def _check_levels(given: Any, called: str) -> None:
    dtype = _dtype(given)
    if dtype == "bool":
        return
    if dtype.startswith("complex"):
        raise InputError(f"{called} of complex numbers, expected 1 where is drawn anew and 0 elsewhere")
    if _is_float(given):
        if not bool(((given >= 0) & (given <= 1)).all()):
            raise InputError(f"{called} has values outside 0 to 1, expected 1 where is drawn anew and 0 elsewhere")
        return
    low, high = (int(given.min()), int(given.max())) if math.prod(given.shape) else (0, 0)
    if low < 0 or high > (255 if dtype == "uint8" else 1):
        raise InputError(f"{called} has values {low} to {high}, expected 0 and 1, or uint8 0 to 255")


def _dtype(given: Any) -> str:
    return str(given.dtype).removeprefix("torch.")


def _is_float(given: Any) -> bool:
    return _dtype(given).startswith(("float", "bfloat"))
