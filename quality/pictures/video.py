"""Videos become one .mp4: H.264 at 16 frames a second by PyAV, several videos beside each other as in a grid.

One video stays as it is; of several a frame is the sheet that `grid` makes of all at that time. H.264 halves the
colours' resolution (yuv420p, which every player shows) and wants even sides, so an odd one is repeated once.
"""

from __future__ import annotations

import importlib.util
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...engine.errors import InputError
from .pixels import MODES, Pixels
from .sheet import grid, picture_of
from .write import replaced

FRAMES_A_SECOND = 16  # of Wan 2.1
QUALITY = "17"  # x264's constant rate factor: losses that are not seen


def check_video(shape: tuple[int, ...], target: Path) -> None:
    """Whether samples [C, frames, H, W] can be written as .mp4 here. Raises InputError."""
    if len(shape) != 4 or shape[0] not in MODES:
        raise InputError(f"output {target}: samples {list(shape)} are no videos; write .png, .npy, .npz or a folder")
    if importlib.util.find_spec("av") is None:
        raise InputError(f"output {target} needs PyAV; pip install 'pfdiff[video]', or name a folder for frames")


def write_video(path: str | Path, videos: NDArray[np.uint8]) -> None:
    """Write videos uint8 [n, frames, H, W, C] as one .mp4. Raises InputError when the disk refuses."""
    target = Path(path)
    check_video((videos.shape[-1], *videos.shape[1:-1]), target)
    av: Any = import_module("av")
    with replaced(target) as partial, av.open(str(partial), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=FRAMES_A_SECOND, options={"crf": QUALITY})
        stream.pix_fmt = "yuv420p"
        for number in range(videos.shape[1]):
            pixels = _even(np.asarray(frame_of(videos[:, number]).convert("RGB")))
            if number == 0:
                stream.height, stream.width = pixels.shape[:2]
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())


def frame_of(images: Pixels) -> Image.Image:
    """One frame of all videos, [n, H, W, C]."""
    return picture_of(images[0]) if len(images) == 1 else grid(images)


def _even(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W, 3] with even sides."""
    height, width, _ = pixels.shape
    return np.ascontiguousarray(np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))
