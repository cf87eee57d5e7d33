"""Videos as .mp4: read back by the library that wrote them, frame by frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfdiff.engine.errors import InputError
from pfdiff.quality.pictures.sheet import grid
from pfdiff.quality.pictures.video import FRAMES_A_SECOND, check_video, write_video
from pfdiff.quality.pictures.write import kind_of, write_images

av: Any = pytest.importorskip("av", reason="pip install 'pfdiff[video]'")


def smooth(count: int, frames: int, height: int, width: int, channels: int) -> np.ndarray:
    """uint8 [n, frames, H, W, C] that differ in place, frame and video, with nothing sharp."""
    y, x = np.mgrid[:height, :width]
    videos = [[(3 * y + 2 * x + 30 * t + 70 * n) % 256 // 4 * 2 + 60 for t in range(frames)] for n in range(count)]
    return np.repeat(np.array(videos, np.uint8)[..., None], channels, -1)


def frames_of(path: Path) -> tuple[np.ndarray, float]:
    """uint8 [frames, H, W, 3], frames a second."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        return np.stack([one.to_ndarray(format="rgb24") for one in file.decode(stream)]), float(stream.average_rate)


@pytest.mark.parametrize(("count", "channels"), [(1, 3), (3, 3), (2, 1)])
def test_each_frame_is_that_of_its_time(tmp_path: Path, count: int, channels: int) -> None:
    videos = smooth(count, 5, 32, 48, channels)
    write_images(tmp_path / "v.mp4", videos, range(count))
    found, rate = frames_of(tmp_path / "v.mp4")
    assert (len(found), rate) == (5, FRAMES_A_SECOND)
    for t, frame in enumerate(found):
        sheet = np.asarray(grid(videos[:, t]).convert("RGB")).astype(int)
        wanted = videos[0, t].astype(int) if count == 1 else sheet
        height, width, _ = wanted.shape
        error = np.abs(frame[:height, :width] - wanted)
        assert np.median(error) <= 3
        others = [np.abs(found[one][:height, :width].astype(int) - wanted).mean() for one in range(5) if one != t]
        assert error.mean() < min(others) / 2


def test_odd_sides_are_made_even(tmp_path: Path) -> None:
    write_video(tmp_path / "odd.mp4", smooth(1, 2, 21, 33, 3))
    assert frames_of(tmp_path / "odd.mp4")[0].shape == (2, 22, 34, 3)
    write_video(tmp_path / "even.mp4", smooth(1, 2, 22, 34, 3))
    assert frames_of(tmp_path / "even.mp4")[0].shape == (2, 22, 34, 3)


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    assert kind_of(tmp_path / "v.mp4") == "video"
    with pytest.raises(InputError, match=r"samples \[3, 8, 8\] are no videos; write .png"):
        check_video((3, 8, 8), Path("v.mp4"))
    with pytest.raises(InputError, match="are no videos"):
        write_images(tmp_path / "v.mp4", smooth(1, 2, 8, 8, 3)[:, 0], [0])
    assert not list(tmp_path.iterdir())
