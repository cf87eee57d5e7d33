"""Pictures in every form that the readers take, and one line for what they do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pfdiff import InputError
from pfdiff.quality.pictures.read import pixels_from, read_pictures
from pfdiff.quality.pictures.write import write_images, write_samples

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 6, 3), np.uint8)


def test_every_format_gives_the_same_pixels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PIXELS)
    np.savez(tmp_path / "b.npz", seed=np.arange(5), pixels=PIXELS)
    np.savez(tmp_path / "c.npz", np.moveaxis(PIXELS, 3, 1))
    write_images(tmp_path / "pictures", PIXELS, range(5))
    for name in ("a.npy", "b.npz", "c.npz", "pictures"):
        np.testing.assert_array_equal(read_pictures(tmp_path / name), PIXELS)


def test_parquet_shards_in_a_folder(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    for index, part in enumerate((PIXELS[:3], PIXELS[3:])):
        column = pyarrow.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(part))
        table = pyarrow.table({"seed": pyarrow.array(range(len(part))), "pixels": column})
        parquet.write_table(table, tmp_path / f"shard-{index}.parquet")
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / ".shard-2.parquet").write_bytes(b"half")  # never counts
    np.testing.assert_array_equal(read_pictures(tmp_path), PIXELS)


def test_samples_in_a_parquet_file_become_pixels(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    samples = np.moveaxis(PIXELS, 3, 1).astype(np.float32) / np.float32(127.5) - 1
    column = pyarrow.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(samples))
    parquet.write_table(pyarrow.table({"sample": column}), tmp_path / "shard.parquet")
    np.testing.assert_array_equal(read_pictures(tmp_path), PIXELS)


def test_grey_pictures_have_one_channel(tmp_path: Path) -> None:
    np.savez(tmp_path / "grey.npz", x=PIXELS[..., 0], y=np.arange(5))
    np.testing.assert_array_equal(read_pictures(tmp_path / "grey.npz"), PIXELS[..., :1])
    write_images(tmp_path / "grey", PIXELS[..., :1], range(5))
    np.testing.assert_array_equal(read_pictures(tmp_path / "grey"), PIXELS[..., :1])


@pytest.mark.parametrize("channels", [3, 4])
def test_a_palette_gives_its_colours(tmp_path: Path, channels: int) -> None:
    colours = np.random.default_rng(2).integers(0, 256, (7, channels), np.uint8)
    indices = np.arange(30, dtype=np.uint8).reshape(5, 6) % 7
    picture = Image.fromarray(indices, "L")
    picture.putpalette(colours[:, :3].tobytes())
    if channels == 4:
        picture.info["transparency"] = colours[:, 3].tobytes()
    picture.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_pictures(tmp_path), colours[indices][None])


def test_samples_become_pixels_by_rounding(tmp_path: Path) -> None:
    samples = np.random.default_rng(1).uniform(-1.2, 1.2, (4, 1, 3, 2)).astype(np.float32)
    write_samples(tmp_path / "samples.npz", samples, range(4))
    expected = np.clip(np.rint((samples.astype(np.float64) + 1) * 127.5), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(read_pictures(tmp_path / "samples.npz"), np.moveaxis(expected, 1, 3))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.npz", None, "there is no such file"),
        ("text.npz", b"no array", "damaged or of another kind"),
        ("cut.png", b"\x89PNG\r\n\x1a\n", "damaged or of another kind"),
        ("notes.txt", b"words", "got .txt, expected one of"),
        ("wide.npy", np.zeros((2, 5, 5, 5), np.uint8), r"got uint8 \[2, 5, 5, 5\], expected pixels"),
        ("none.npy", np.zeros((0, 5, 5, 3), np.uint8), r"got uint8 \[0, 5, 5, 3\]"),
        ("long.npy", np.zeros((2, 5, 5), np.int64), "got int64"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(tmp_path: Path, name: str, content: object, message: str) -> None:
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_pictures(path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_pictures_and_one_of_two_kinds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the folder holds none"):
        read_pictures(tmp_path)
    np.save(tmp_path / "a.npy", PIXELS)
    np.savez(tmp_path / "b.npz", PIXELS)
    with pytest.raises(InputError, match=r"got \.npy, \.npz, expected one of"):
        read_pictures(tmp_path)


def test_several_arrays_without_a_known_name_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", first=PIXELS, second=PIXELS)
    with pytest.raises(InputError, match="holds first, second; expected pixels or"):
        read_pictures(tmp_path / "two.npz")


def test_pictures_of_two_sizes_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PIXELS)
    np.save(tmp_path / "b.npy", PIXELS[:, :5])
    with pytest.raises(InputError, match="got sizes 5x6x3, 7x6x3, expected one"):
        read_pictures(tmp_path)


def test_channels_first_and_last_are_told_apart_by_their_number() -> None:
    assert pixels_from(np.zeros((2, 3, 8, 9), np.uint8), "here").shape == (2, 8, 9, 3)
    assert pixels_from(np.zeros((2, 8, 9, 3), np.uint8), "here").shape == (2, 8, 9, 3)
    assert pixels_from(np.zeros((2, 1, 8, 3), np.float32), "here").shape == (2, 8, 3, 1)  # samples: channels first


def test_a_folder_of_png_and_jpeg_is_read_whole(tmp_path: Path) -> None:
    """b.jpg is not left out, nor what ends in capitals."""
    flat = np.full((8, 8, 3), 200, np.uint8)
    Image.fromarray(PIXELS[0]).resize((8, 8)).save(tmp_path / "a.png")
    Image.fromarray(flat).save(tmp_path / "b.jpg")
    Image.fromarray(flat).save(tmp_path / "C.PNG")
    found = read_pictures(tmp_path)
    assert found.shape == (3, 8, 8, 3)
    assert sum(bool((np.abs(one.astype(int) - 200) <= 2).all()) for one in found) == 2


@pytest.mark.parametrize("name", ["b.gif", "b.tiff", "b.avif", "b.eps"])
def test_a_folder_with_a_format_that_is_not_read_is_refused(tmp_path: Path, name: str) -> None:
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(InputError, match=rf"got .*\{Path(name).suffix}.*, expected one of \.npz"):
        read_pictures(tmp_path)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (0, 255, r"got floats in 0\.\d*\.\.25\d.*, expected samples in -1\.\.1"),
        (0, 1, "none below 0, expected samples in -1..1; give 2 x - 1 for 0..1"),
        (-127, 128, "expected samples in -1..1"),
    ],
)
def test_floats_of_another_range_are_refused(tmp_path: Path, low: float, high: float, message: str) -> None:
    samples = np.random.default_rng(3).uniform(low, high, (4, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", samples)
    with pytest.raises(InputError, match=message):
        read_pictures(tmp_path / "x.npy")


def test_a_sampler_may_overshoot() -> None:
    samples = np.random.default_rng(3).normal(0, 0.7, (4, 3, 8, 8)).astype(np.float32)
    assert np.abs(samples).max() > 1.5
    assert pixels_from(samples, "here").shape == (4, 8, 8, 3)


def test_what_is_named_like_a_picture_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow starts Ghostscript for EPS, whatever the file is called."""
    import subprocess

    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    eps = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "x.png").write_text(eps)
    with pytest.raises(InputError, match="damaged or of another kind"):
        read_pictures(tmp_path / "x.png")


def test_a_picture_larger_than_memory_is_not_unpacked(tmp_path: Path) -> None:
    """12000 x 12000 pixels of one colour in a small file, which would take a gibibyte and more."""
    Image.new("1", (12000, 12000)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"12000 x 12000 pixels, expected at most 67108864 in all"):
        read_pictures(tmp_path / "x.png")
