"""Pictures from files: .npz, .npy, .parquet, .png, .jpg, .webp, .bmp, or a folder of them.

Arrays are uint8 pixels [n, H, W], [n, H, W, C] or [n, C, H, W], or float samples [n, C, H, W] with the range -1..1,
which become pixels as `engine.images` makes them. C is 1, 3 or 4. Only regular files are opened, and sizes are checked
before anything is unpacked.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...engine.errors import InputError, first_line
from ...engine.files.array_files import chosen, open_regular, read_array
from .pixels import MODES, Pixels, pixels_of

OUTSIDE, MOST_OUTSIDE = 1.5, 0.1  # a value of float samples that is far out, and the share that may be
MOST_PIXELS = 1 << 26  # of one picture
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# What Pillow may open, whatever the ending: it would start Ghostscript for EPS.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
NOT_READ = (".gif", ".tif", ".tiff", ".avif", ".heic", ".jp2", ".jxl", ".eps", ".ppm", ".pgm", ".pt", ".pkl")
NAMES = ("pixels", "sample", "samples", "images", "x", "arr_0")  # of the array in a file that holds several


def read_pictures(path: str | Path) -> Pixels:
    """uint8 [n, H, W, C], the files of a folder in the order of their names. Raises InputError.

    A folder may mix picture formats, not arrays with pictures; a format that is not read is refused, not left out.
    """
    place = Path(path)
    if (place / "engine.json").is_file():
        raise InputError(f"pictures '{path}': this is an engine; draw from it with --nfe and --count")
    files = [place] if not place.is_dir() else sorted(one for one in place.rglob("*") if _is_picture(one))
    if not files or not (place.is_dir() or place.exists()):
        what = "there is no such file or folder" if not place.is_dir() else "the folder holds none"
        raise InputError(f"pictures '{path}': {what}; expected {', '.join(READERS)}, or a folder of these")
    kinds = {file.suffix.lower() for file in files}
    if not kinds <= READERS.keys() or (len(kinds) > 1 and not kinds <= set(PICTURES)):
        got = ", ".join(sorted(kinds)) or "no ending"
        raise InputError(f"pictures '{path}': got {got}, expected one of {', '.join(READERS)}; sort or convert them")
    parts = [_read(file) for file in files]
    shapes = sorted({one.shape[1:] for one in parts})
    if len(shapes) > 1:
        got = ", ".join("x".join(map(str, shape)) for shape in shapes[:8])
        raise InputError(f"pictures '{path}': got sizes {got}, expected one; sort them into folders")
    return np.concatenate(parts)


def pictures_of(given: Any) -> tuple[Pixels, str]:
    """(pixels, name) of files or of an array. Raises InputError."""
    if isinstance(given, (str, os.PathLike)):
        return read_pictures(Path(given)), Path(given).name
    if isinstance(given, np.ndarray):
        return pixels_from(given, "the array"), "an array"
    raise InputError(f"pictures of type {type(given).__name__}, expected a path or an array")


def pixels_from(values: NDArray[Any], where: str) -> Pixels:
    """uint8 [n, H, W, C] of an array of pixels or samples. Raises InputError."""
    floating = values.dtype.kind == "f"
    shape = values.shape
    fits = values.ndim == 3 or (values.ndim == 4 and ((shape[3] in MODES and not floating) or (shape[1] in MODES)))
    if not len(values) or not fits or not (floating or values.dtype == np.uint8):
        raise InputError(
            f"{where}: got {values.dtype} {list(shape)}, expected pixels uint8 [n, H, W, 1|3|4] or [n, 1|3|4, H, W], "
            "or float samples [n, 1|3|4, H, W] in -1..1"
        )
    if values.ndim == 3:
        values = values[:, None] if floating else values[..., None]
    if not floating:
        return np.ascontiguousarray(values if values.shape[3] in MODES else np.moveaxis(values, 1, 3))
    _check_range(values, where)
    return pixels_of(values)


def _check_range(samples: NDArray[Any], where: str) -> None:
    """Refuses floats in 0..1 and 0..255. Samples may leave -1..1 a little: samplers overshoot."""
    with np.errstate(invalid="ignore"):
        lowest, highest = float(np.nanmin(samples)), float(np.nanmax(samples))
        outside = float(np.mean(np.abs(samples) > OUTSIDE))
    if outside > MOST_OUTSIDE or highest > 50 * OUTSIDE:
        raise InputError(
            f"{where}: got floats in {lowest:.4g}..{highest:.4g}, expected samples in -1..1; scale them, or store "
            "pixels as uint8"
        )
    if lowest >= 0 and highest > lowest:
        raise InputError(
            f"{where}: got floats in {lowest:.4g}..{highest:.4g} and none below 0, expected samples in -1..1; give "
            "2 x - 1 for 0..1, or pixels as uint8"
        )


# Files.
def _is_picture(path: Path) -> bool:
    """Whether a file of a folder counts, also to be refused; hidden files and folders do not."""
    hidden = any(part.startswith(".") for part in path.parts[-2:])
    return path.suffix.lower() in (*READERS, *NOT_READ) and not hidden and not path.is_dir()


def _read(file: Path) -> Pixels:
    where = f"pictures '{file}'"
    try:
        return pixels_from(READERS[file.suffix.lower()](file), where)
    except InputError as error:
        raise error if str(error).startswith(where) else InputError(f"pictures {error}") from None
    except Exception as error:  # each library has exceptions of its own
        raise InputError(f"{where}: damaged or of another kind ({first_line(error)[:120]})") from error


def _array(file: Path) -> NDArray[Any]:
    return read_array(file, NAMES)


def _parquet(file: Path) -> NDArray[Any]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"pictures '{file}' need pyarrow; install it with pip install pyarrow") from None
    with open_regular(file) as opened:
        table = parquet.read_table(opened)
    column = table.column(chosen(table.column_names, NAMES, f"pictures '{file}'")).combine_chunks()
    return column.to_numpy_ndarray()


def _picture(file: Path) -> NDArray[Any]:
    with open_regular(file) as opened:
        return _pixels(opened, file)


def _pixels(opened: BinaryIO, file: Path) -> NDArray[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is checked below
        picture = Image.open(opened, formats=FORMATS)
    with picture:
        width, height = picture.size
        if width * height > MOST_PIXELS:
            raise InputError(f"pictures '{file}': {width} x {height} pixels, expected at most {MOST_PIXELS} in all")
        if picture.mode == "P":  # its pixels are indices of colours
            pixels = np.asarray(picture.convert("RGBA" if picture.has_transparency_data else "RGB"))
        elif picture.mode == "CMYK":
            pixels = np.asarray(picture.convert("RGB"))
        else:
            pixels = np.asarray(picture)
    return pixels[None, ..., None] if pixels.ndim == 2 else pixels[None]


READERS: dict[str, Callable[[Path], NDArray[Any]]] = {
    ".npz": _array,
    ".npy": _array,
    ".parquet": _parquet,
    **dict.fromkeys(PICTURES, _picture),
}
