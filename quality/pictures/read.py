"""Pictures from files: .npz, .npy, .parquet, .png, or a folder of them, such as `pfdiff generate` and `sample` write.

Arrays are uint8 pixels [n, H, W], [n, H, W, C] or [n, C, H, W], or float samples [n, C, H, W] with the range -1..1,
which become pixels as `engine.images` makes them. C is 1, 3 or 4.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...engine.errors import InputError, first_line
from .pixels import MODES, Pixels, pixels_of

NAMES = ("pixels", "sample", "samples", "images", "x", "arr_0")  # of the array in a file that holds several


def read_pictures(path: str | Path) -> Pixels:
    """uint8 [n, H, W, C], the files of a folder in the order of their names. Raises InputError."""
    place = Path(path)
    if (place / "engine.json").is_file():
        raise InputError(f"pictures '{path}': this is an engine; draw from it with --nfe and --count")
    files = [place] if place.is_file() else sorted(one for one in place.rglob("*") if _is_picture(one))
    if not files:
        what = "there is no such file or folder" if not place.is_dir() else "the folder holds none"
        raise InputError(f"pictures '{path}': {what}; expected {', '.join(READERS)}, or a folder of these")
    kinds = {file.suffix for file in files}
    if len(kinds) > 1 or not kinds <= READERS.keys():
        raise InputError(f"pictures '{path}': got {', '.join(sorted(kinds))}, expected one of {', '.join(READERS)}")
    parts = [_read(file) for file in files]
    shapes = sorted({one.shape[1:] for one in parts})
    if len(shapes) > 1:
        got = ", ".join("x".join(map(str, shape)) for shape in shapes)
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
    return pixels_of(values)


# Files.
def _is_picture(path: Path) -> bool:
    return path.suffix in READERS and not any(part.startswith(".") for part in path.parts[-2:]) and path.is_file()


def _read(file: Path) -> Pixels:
    try:
        return pixels_from(READERS[file.suffix](file), f"pictures '{file}'")
    except InputError:
        raise
    except Exception as error:  # each library has exceptions of its own
        raise InputError(f"pictures '{file}': damaged or of another kind ({first_line(error)[:120]})") from error


def _npz(file: Path) -> NDArray[Any]:
    with np.load(file, allow_pickle=False) as held:
        return held[_chosen(list(held), file)]


def _npy(file: Path) -> NDArray[Any]:
    return np.load(file, allow_pickle=False)


def _parquet(file: Path) -> NDArray[Any]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"pictures '{file}' need pyarrow; install it with pip install pyarrow") from None
    table = parquet.read_table(file)
    column = table.column(_chosen(table.column_names, file)).combine_chunks()
    return column.to_numpy_ndarray()


def _png(file: Path) -> NDArray[Any]:
    with Image.open(file) as picture:
        if picture.mode == "P":  # its pixels are indices of colours
            pixels = np.asarray(picture.convert("RGBA" if picture.has_transparency_data else "RGB"))
        else:
            pixels = np.asarray(picture)
    return pixels[None, ..., None] if pixels.ndim == 2 else pixels[None]


def _chosen(names: list[str], file: Path) -> str:
    for name in NAMES:
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    raise InputError(f"pictures '{file}': it holds {', '.join(names) or 'nothing'}; expected one of {', '.join(NAMES)}")


READERS: dict[str, Callable[[Path], NDArray[Any]]] = {
    ".npz": _npz,
    ".npy": _npy,
    ".parquet": _parquet,
    ".png": _png,
}
