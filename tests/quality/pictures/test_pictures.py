"""quality/pictures/write.py: what is written reads back, appears whole or not at all; bad targets are refused early."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pfdiff.engine.errors import InputError
from pfdiff.quality.pictures import write as pictures
from pfdiff.quality.pictures.sheet import Row, columns_for, grid, sheet, tiles


def images(count: int, height: int = 5, width: int = 7, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def test_a_grid_holds_every_image_in_order(tmp_path: Path) -> None:
    given = images(5)
    pictures.write_images(tmp_path / "grid.png", given, range(5))
    page = np.asarray(Image.open(tmp_path / "grid.png"))
    scale, gap = 13, 2  # 5 pixels high, magnified to at least 64
    assert page.shape == (2 * (5 * scale + gap) + gap, 3 * (7 * scale + gap) + gap, 3)
    for index, image in enumerate(given):
        row, column = divmod(index, 3)
        y, x = gap + row * (5 * scale + gap), gap + column * (7 * scale + gap)
        assert (page[y : y + 5 * scale : scale, x : x + 7 * scale : scale] == image).all()


@pytest.mark.parametrize("size", [(8, 6, 1), (5, 7, 3), (70, 64, 3)])
@pytest.mark.parametrize("count", [1, 4, 7])
def test_the_images_of_a_grid_are_read_back(tmp_path: Path, count: int, size: tuple[int, int, int]) -> None:
    """Also where holes are left; other pages are none, whatever their size."""
    given = images(count, *size)
    pictures.write_images(tmp_path / "grid.png", given, range(count))
    page = np.array(Image.open(tmp_path / "grid.png"))
    found = tiles(page, *size)
    assert found is not None
    assert (found == given).all()
    height, width, channels = size
    assert tiles(page, height, width + 1, channels) is None
    assert tiles(page[1:], *size) is None
    for y, x in ((0, 5), (5, 1), (3, 3)):  # margins, and a pixel of one magnified, or of none
        changed = page.copy()
        changed[y, x] ^= 1
        again = tiles(changed, *size)
        assert again is None or (height > 63 and y == x == 3)


@pytest.mark.parametrize(
    ("count", "columns"), [(1, 1), (2, 2), (5, 3), (6, 3), (7, 3), (10, 5), (12, 4), (16, 4), (32, 8), (64, 8)]
)
def test_a_grid_has_no_holes_where_a_full_one_is_near_a_square(count: int, columns: int) -> None:
    assert columns_for(count) == columns
    assert grid(images(count, 64, 64)).width == columns * 66 + 2


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_a_folder_holds_one_file_a_seed(tmp_path: Path, channels: int, mode: str) -> None:
    given = images(3, channels=channels)
    pictures.write_images(tmp_path / "faces", given, [7, 11, 1234567])
    names = sorted(path.name for path in (tmp_path / "faces").iterdir())
    assert names == ["000007.png", "000011.png", "1234567.png"]
    read = Image.open(tmp_path / "faces" / "000011.png")
    assert read.mode == mode
    assert (np.asarray(read).reshape(given[1].shape) == given[1]).all()


def test_an_existing_folder_keeps_its_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "faces.v2"
    folder.mkdir()
    (folder / "notes").write_text("kept")
    pictures.write_images(folder, images(2), [0, 1])
    assert sorted(path.name for path in folder.iterdir()) == ["000000.png", "000001.png", "notes"]
    assert [path.name for path in tmp_path.iterdir()] == ["faces.v2"]


def test_samples_come_back_exactly(tmp_path: Path) -> None:
    samples = np.random.default_rng(1).standard_normal((3, 2, 5), dtype=np.float32)
    pictures.write_samples(tmp_path / "x.npy", samples, [0, 3, 2**64 - 1])
    pictures.write_samples(tmp_path / "x.npz", samples, [0, 3, 2**64 - 1], {"label": [1, 2, 3]})
    assert (np.load(tmp_path / "x.npy") == samples).all()
    with np.load(tmp_path / "x.npz") as held:
        assert sorted(held) == ["label", "samples", "seeds"]
        assert (held["samples"] == samples).all()
        assert held["seeds"].tolist() == [0, 3, 2**64 - 1]


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 5, 7, 2), (0, 5, 7, 3)])
def test_what_is_no_picture_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=re.escape(f"uint8 {list(shape)}")):
        pictures.write_images(tmp_path / "grid.png", np.zeros(shape, np.uint8), range(shape[0]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.jpg", "ends in '.jpg'; expected .png, .mp4, .npy, .npz or a folder's name"),
        ("missing/x.png", "does not exist; create it first"),
        ("file", "is a file; name a folder"),
        ("an.engine", "is an engine directory"),
    ],
)
def test_a_bad_target_is_refused_before_sampling(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "an.engine").mkdir()
    (tmp_path / "an.engine" / "engine.json").write_text("{}")
    with pytest.raises(InputError, match=re.escape(message)):
        pictures.kind_of(tmp_path / name)


@pytest.mark.parametrize("said", [(28, "No space left on device"), ("6400 requested and 992 written",)])
def test_a_full_disk_leaves_the_former_file(
    said: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "x.npy"
    target.write_bytes(b"former")

    def full(*_: object) -> None:
        raise OSError(*said)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match="No space left on device"):
        pictures.write_samples(target, np.zeros((1, 2), np.float32), [0])
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
    assert target.read_bytes() == b"former"


def test_a_sheet_places_rows_under_headings() -> None:
    given = images(8, 64, 64, 1)
    rows = [Row("DDIM\n5 evaluations", given[:4]), Row("PFDiff", given[4:])]
    page = np.asarray(sheet(rows, ["a", "b", "c", "d"], title="Title", note="note"))
    place = [
        (y, x)
        for y in range(page.shape[0] - 63)
        for x in range(page.shape[1] - 63)
        if (page[y, x] == given[7, 0, 0]).all() and (page[y : y + 64, x : x + 64] == given[7]).all()
    ]
    assert len(place) == 1
    assert place[0][1] + 64 == page.shape[1] - 16  # the last column ends at the margin
