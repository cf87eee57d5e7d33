"""Samples become files: a PNG grid, a folder of PNGs, .mp4, .npy, .npz.

Images are uint8 [n, height, width, channels] with 1, 3 or 4 channels; samples are float32 [n, *shape]. A file appears
whole or not at all: it is written beside its place and renamed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...engine.atomic import replacing, replacing_folder
from ...engine.errors import InputError
from ...engine.files.outside import check_outside
from .pixels import Pixels
from .sheet import grid, picture_of

Kind = Literal["grid", "folder", "video", "npy", "npz"]
KINDS: dict[str, Kind] = {".png": "grid", "": "folder", ".mp4": "video", ".npy": "npy", ".npz": "npz"}


def kind_of(path: str | Path) -> Kind:
    """What will be written at `path`, checked before any sampling.

    Raises InputError on an unknown extension, a folder that is missing or cannot be written, a file where a folder
    should be, or an engine.
    """
    target = Path(path)
    if target.is_dir():
        check_writable(target, target)
        if (target / "engine.json").exists():
            raise InputError(f"output {target} is an engine directory; name another folder for the pictures")
        return "folder"
    suffix = "" if str(path).endswith(("/", os.sep)) else target.suffix.lower()
    if not suffix and target.name.lower() in KINDS:
        raise InputError(f"output {target} is an ending without a name; expected, for instance, samples{target.name}")
    if suffix not in KINDS:
        raise InputError(
            f"output {target} ends in '{target.suffix}'; expected .png, .mp4, .npy, .npz or a folder's name"
        )
    if target.exists() and KINDS[suffix] == "folder":
        raise InputError(f"output {target} is a file; name a folder, or a file that ends in .png, .npy or .npz")
    check_folder(target)
    return KINDS[suffix]


def check_folder(target: Path) -> None:
    """Raises InputError when the folder of a file is missing, or cannot be written."""
    if not target.absolute().parent.is_dir():
        raise InputError(f"output {target}: the folder {target.parent} does not exist; create it first")
    check_outside(target)
    check_writable(target.absolute().parent, target)


def check_writable(folder: Path, target: Path) -> None:
    """Raises InputError when no file can be made in `folder`, by making one without a name."""
    with _writing(target), tempfile.TemporaryFile(dir=folder):
        pass


def write_images(path: str | Path, images: Pixels, seeds: Sequence[int]) -> None:
    """Write images uint8 [n, height, width, channels] as one grid (.png) or as <seed>.png each (a folder).

    Videos [n, frames, height, width, channels] become one .mp4, or <seed>_<frame>.png each.
    Raises InputError when `path` is neither, when the images are no pictures, or when the disk refuses.
    """
    target, kind = Path(path), kind_of(path)
    if images.ndim == 5 and kind == "folder":
        each = zip(seeds, images, strict=True)
        named = {f"{seed:06d}_{frame:03d}.png": one for seed, video in each for frame, one in enumerate(video)}
        _write_folder(target, named)
    elif kind == "video":
        from .video import write_video

        write_video(target, images)
    elif kind == "grid":
        with replaced(target) as partial:
            grid(images).save(partial, format="PNG")
    elif kind == "folder":
        _write_folder(target, {f"{seed:06d}.png": image for seed, image in zip(seeds, images, strict=True)})
    else:
        raise InputError(f"output {target} holds samples, not images; expected .png or a folder's name")


def _write_folder(target: Path, images: Mapping[str, Pixels]) -> None:
    """A new folder appears whole. An existing one keeps its other files, and gets each picture whole."""
    with _writing(target):
        if not target.is_dir():
            with replacing_folder(target) as staging:
                for name, image in images.items():
                    picture_of(image).save(staging / name, format="PNG")
            return
        for name, image in images.items():
            with replacing(target / name, durable=False) as part:
                picture_of(image).save(part, format="PNG")


def write_samples(
    path: str | Path, samples: NDArray[np.float32], seeds: Sequence[int], conditions: Mapping[str, Any] | None = None
) -> None:
    """Write samples float32 [n, *shape]: .npy holds them alone, .npz `samples`, `seeds` (uint64 [n]) and conditions.

    Raises InputError when `path` is neither or when the disk refuses.
    """
    target, kind = Path(path), kind_of(path)
    if kind not in ("npy", "npz"):
        raise InputError(f"output {target} holds images, not samples; expected .npy or .npz")
    with replaced(target) as partial, partial.open("wb") as file:
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
    with replaced(Path(path)) as partial:
        picture.save(partial, format="PNG")


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """An empty file that takes the place of the file `target` at the end. Raises InputError when the disk refuses."""
    with _writing(target), replacing(target, durable=False) as part:
        yield part


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if "requested and" in reason:  # NumPy, of bytes that found no room
            reason = "No space left on device"
        raise InputError(f"cannot write {target}: {reason}; free some space or choose another place") from error
