"""Uploaded pictures become arrays. Sizes are compared with those of the engine before anything is unpacked."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from ...quality.pictures.pixels import MODES
from ..orders import NotDrawnError

FORMATS = ("PNG", "JPEG", "WEBP")
ON_ITS_SIDE = (5, 6, 7, 8)  # orientations of EXIF that change width and height
READ = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # modes of 8 bits that can be converted


def picture_of(raw: bytes, name: str, size: tuple[int, int, int]) -> Image.Image:
    """The picture, loaded and upright, of the size [H, W, C] of the engine's. Raises NotDrawnError."""
    try:
        picture = Image.open(io.BytesIO(raw), formats=FORMATS)
        height, width, _ = size
        sides = picture.size[::-1] if picture.getexif().get(ExifTags.Base.Orientation) in ON_ITS_SIDE else picture.size
        if sides != (width, height):
            got = "x".join(map(str, sides))
            raise NotDrawnError(400, f"{name}: got {got} pixels, this engine draws {width}x{height}; resize it first")
        picture.load()
        picture = ImageOps.exif_transpose(picture)  # as the camera was held
    except NotDrawnError:
        raise
    except Exception:  # each format has exceptions of its own
        raise NotDrawnError(400, f"{name}: this is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from None
    if picture.mode not in READ:
        raise NotDrawnError(400, f"{name}: got pixels of kind {picture.mode}, expected 8 bits a channel")
    return picture


def pixels_of(picture: Image.Image, channels: int) -> NDArray[np.uint8]:
    """uint8 [H, W, C]."""
    return np.atleast_3d(np.asarray(picture.convert(MODES[channels])))


def anew_of(picture: Image.Image) -> NDArray[np.uint8] | None:
    """uint8 [H, W], 255 where a picture is transparent, as OpenAI's route draws anew; None where nothing is."""
    if not picture.has_transparency_data:
        return None
    alpha = np.asarray(picture.convert("RGBA").getchannel("A"))
    return None if alpha.min() == 255 else 255 - alpha


def mask_of(picture: Image.Image) -> NDArray[np.uint8]:
    """uint8 [H, W]: what is transparent, or in a picture where nothing is, what is white."""
    anew = anew_of(picture)
    return np.asarray(picture.convert("L")) if anew is None else anew
