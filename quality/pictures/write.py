"""Samples become files: a PNG grid, a folder of PNGs, .npy, .npz, and a sheet of captioned rows.

Images are uint8 [n, height, width, channels] with 1, 3 or 4 channels; samples are float32 [n, *shape]. A file appears
whole or not at all: it is written beside its place and renamed.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ...engine.errors import InputError

Kind = Literal["grid", "folder", "npy", "npz"]
KINDS: dict[str, Kind] = {".png": "grid", "": "folder", ".npy": "npy", ".npz": "npz"}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
PAPER, INK, QUIET = (255, 255, 255), (24, 24, 27), (113, 113, 122)
SMALLEST_TILE = 64  # smaller images are magnified by a whole factor


@dataclass(frozen=True)
class Row:
    """One row of a sheet: its caption (lines split at newlines) and images uint8 [n, height, width, channels]."""

    caption: str
    images: NDArray[np.uint8]


def kind_of(path: str | Path) -> Kind:
    """What will be written at `path`, checked before any sampling.

    Raises InputError on an unknown extension, a missing parent folder, a file where a folder should be, or an engine.
    """
    target = Path(path)
    if target.is_dir():
        if (target / "engine.json").exists():
            raise InputError(f"output {target} is an engine directory; name another folder for the pictures")
        return "folder"
    suffix = "" if str(path).endswith(("/", os.sep)) else target.suffix.lower()
    if suffix not in KINDS:
        raise InputError(f"output {target} ends in '{target.suffix}'; expected .png, .npy, .npz or a folder's name")
    if target.exists() and KINDS[suffix] == "folder":
        raise InputError(f"output {target} is a file; name a folder, or a file that ends in .png, .npy or .npz")
    if not target.parent.is_dir():
        raise InputError(f"output {target}: the folder {target.parent} does not exist; create it first")
    return KINDS[suffix]


def check_shape(shape: Sequence[int]) -> None:
    """Whether one sample, or one image of a decoder, is a picture, checked before any sampling. Raises InputError."""
    if len(shape) != 3 or shape[0] not in MODES:
        raise InputError(f"no pictures: got samples {list(shape)}, expected [1|3|4, H, W]; write .npy or .npz instead")


def write_images(path: str | Path, images: NDArray[np.uint8], seeds: Sequence[int]) -> None:
    """Write images uint8 [n, height, width, channels] as one grid (.png) or as <seed>.png each (a folder).

    Raises InputError when `path` is neither, when the images are no pictures, or when the disk refuses.
    """
    target, kind = Path(path), kind_of(path)
    if kind == "grid":
        with _replaced(target) as partial:
            grid(images).save(partial, format="PNG")
    elif kind == "folder":
        names = [f"{seed:06d}.png" for seed in seeds]
        with _replaced(target) as partial:
            partial.mkdir()
            for name, image in zip(names, images, strict=True):
                _picture(image).save(partial / name, format="PNG")
    else:
        raise InputError(f"output {target} holds samples, not images; expected .png or a folder's name")


def write_samples(
    path: str | Path, samples: NDArray[np.float32], seeds: Sequence[int], conditions: Mapping[str, Any] | None = None
) -> None:
    """Write samples float32 [n, *shape]: .npy holds them alone, .npz `samples`, `seeds` (uint64 [n]) and conditions.

    Raises InputError when `path` is neither or when the disk refuses.
    """
    target, kind = Path(path), kind_of(path)
    if kind not in ("npy", "npz"):
        raise InputError(f"output {target} holds images, not samples; expected .npy or .npz")
    with _replaced(target) as partial, partial.open("wb") as file:
        if kind == "npy":
            np.save(file, samples)
        else:
            arrays: dict[str, Any] = {name: np.asarray(value) for name, value in (conditions or {}).items()}
            arrays |= {"samples": samples, "seeds": np.asarray(seeds, dtype=np.uint64)}
            np.savez(file, **arrays)


def write_picture(path: str | Path, picture: Image.Image) -> None:
    """Write one PIL picture as PNG. Raises InputError when `path` does not end in .png or the disk refuses."""
    if kind_of(path) != "grid":
        raise InputError(f"output {path}: expected a file that ends in .png")
    with _replaced(Path(path)) as partial:
        picture.save(partial, format="PNG")


def grid(images: NDArray[np.uint8], columns: int | None = None) -> Image.Image:
    """Images uint8 [n, height, width, channels] in rows of `columns` (default: the smallest square that holds them)."""
    count, height, width, _ = _checked(images).shape
    columns = columns or math.ceil(math.sqrt(count))
    scale, gap = _magnification(height), 2
    rows = math.ceil(count / columns)
    page = Image.new(
        "RGBA" if images.shape[-1] == 4 else "RGB",
        (columns * (scale * width + gap) + gap, rows * (scale * height + gap) + gap),
        PAPER,
    )
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        page.paste(_picture(image, scale), (gap + column * (scale * width + gap), gap + row * (scale * height + gap)))
    return page


def sheet(rows: Sequence[Row], headings: Sequence[str] = (), title: str = "", note: str = "") -> Image.Image:
    """Rows of images of one size, captions at the left, headings above the columns, a title above and a note below."""
    _, height, width, _ = _checked(rows[0].images).shape
    scale, gap, margin = _magnification(height), 4, 16
    font, small, large = (ImageFont.load_default(size) for size in (14, 12, 20))
    captions = [row.caption.split("\n") for row in rows]
    left = margin + max(math.ceil(font.getlength(line)) for lines in captions for line in lines) + 16
    top = margin + (34 if title else 0) + (20 if headings else 0)
    tile_width, tile_height = scale * width + gap, scale * height + gap
    right = left + tile_width * max(len(row.images) for row in rows) - gap
    right = max(right, *(margin + math.ceil(face.getlength(text)) for face, text in ((large, title), (small, note))))
    bottom = top + tile_height * len(rows)
    page = Image.new("RGB", (right + margin, bottom + (22 if note else 0) + margin - gap), PAPER)
    ink = ImageDraw.Draw(page)

    # Words.
    ink.text((margin, margin - 4), title, fill=INK, font=large)
    for column, heading in enumerate(headings):
        middle = left + column * tile_width + scale * width // 2
        ink.text((middle, top - 4), heading, fill=QUIET, font=small, anchor="ms")
    ink.text((margin, bottom + 6), note, fill=QUIET, font=small)

    # Rows. A caption is centred on its row; its first line is the name, the others are quiet.
    for index, (row, lines) in enumerate(zip(rows, captions, strict=True)):
        y = top + index * tile_height
        for line, text in enumerate(lines):
            offset = scale * height / 2 + 18 * (line - (len(lines) - 1) / 2)
            ink.text((margin, y + offset), text, fill=QUIET if line else INK, font=font, anchor="lm")
        for column, image in enumerate(_checked(row.images)):
            page.paste(_picture(image, scale), (left + column * tile_width, y))
    return page


def _magnification(height: int) -> int:
    return max(1, -(-SMALLEST_TILE // height))


def _checked(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if images.ndim != 4 or images.shape[-1] not in MODES or images.dtype != np.uint8 or not images.size:
        got = f"{images.dtype} {list(images.shape)}"
        raise InputError(
            f"no pictures: got {got}, expected uint8 [n, height, width, 1|3|4]; write .npy or .npz instead"
        )
    return images


def _picture(image: NDArray[np.uint8], scale: int = 1) -> Image.Image:
    height, width, channels = _checked(image[None])[0].shape
    picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if channels == 1 else image))
    return picture.resize((scale * width, scale * height), Image.Resampling.NEAREST) if scale > 1 else picture


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """A path beside `target` to write a file or a folder at; renamed to `target` at the end, removed on any error."""
    partial = target.parent / f".{target.name}.{os.getpid()}.partial"
    try:
        yield partial
        if partial.is_dir() and target.is_dir():  # an existing folder keeps its other files
            for file in sorted(partial.iterdir()):
                file.replace(target / file.name)
        else:
            partial.replace(target)
    except OSError as error:
        raise InputError(
            f"cannot write {target}: {error.strerror or error}; choose a place that can be written"
        ) from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
