"""Pictures on the command line: of a ControlNet, turned by their camera, transparent in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pfdiff
from pfdiff.cli import main
from pfdiff.cli.arguments.conditions import conditions_from
from pfdiff.cli.arguments.prompts import asked_from, by_seed, picture_from
from pfdiff.engine.contract.condition import Condition
from pfdiff.engine.contract.contract import Contract


# The picture of a ControlNet.
def controlled(name: str, shape: tuple[int, ...]) -> Contract:
    shown = Condition(name, "float32", shape, alias="control_image" if name == "control_latents" else "")
    return Contract("small", (4, 2, 2), "linear:1000", "eps", conditions=(shown,))


@pytest.mark.parametrize(("name", "shape"), [("control_image", (3, 6, 5)), ("control_latents", (4, 2, 2))])
def test_a_controlnets_picture_comes_from_a_file(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (6, 5, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "edges.png")
    for option in ("--control_image", "--control-image"):
        typed = [option, str(tmp_path / "edges.png")]
        (found,) = conditions_from(typed, controlled(name, shape), 2).values()
        assert found.shape == (2, 3, 6, 5)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found[1], pixels.transpose(2, 0, 1) / 255, atol=1e-6)


def test_latents_of_a_controlnet_are_taken_as_they_are(tmp_path: Path) -> None:
    np.save(tmp_path / "latents.npy", np.ones((4, 2, 2), np.float32))
    contract = controlled("control_latents", (4, 2, 2))
    (found,) = conditions_from(["--control_latents", str(tmp_path / "latents.npy")], contract, 2).values()
    assert found.shape == (2, 4, 2, 2)
    np.save(tmp_path / "three.npy", np.ones((3, 3, 6, 5), np.float32))
    with pytest.raises(pfdiff.InputError, match=r"--control_image: got \[3, 3, 6, 5\], expected one picture"):
        conditions_from(["--control_image", str(tmp_path / "three.npy")], contract, 2)


def test_a_picture_is_turned_as_the_camera_was_held(tmp_path: Path) -> None:
    """Orientation 6: the camera lay on its left side, and the first row is the last column."""
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(pixels).save(tmp_path / "day.png", exif=exif)
    found = picture_from("--image", str(tmp_path / "day.png"))
    np.testing.assert_array_equal(found, np.rot90(pixels, -1))
    assert found.shape == (3, 2, 3)


# Pictures that are transparent in parts.
def save_clear(kind: str, path: Path) -> None:
    """A red pixel, and one that is black and transparent."""
    pixels = np.array([[[255, 0, 0, 255], [0, 0, 0, 0]]], np.uint8)
    picture = Image.fromarray(pixels)
    if kind == "palette":
        indexed = Image.new("P", (2, 1))
        indexed.putpalette([255, 0, 0, 0, 0, 0])
        indexed.putdata([0, 1])
        indexed.save(path, transparency=1)
    else:
        picture.save(path)


@pytest.mark.parametrize("kind", ["alpha", "palette"])
def test_what_is_transparent_becomes_white_and_is_said(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "day.png"
    save_clear(kind, path)
    with pytest.warns(RuntimeWarning, match="day.png' is transparent in parts, which become white; give a picture"):
        found = picture_from("--image", str(path))
    np.testing.assert_array_equal(found, [[[255, 0, 0], [255, 255, 255]]])
    Image.fromarray(np.full((1, 2, 4), 255, np.uint8)).save(path)  # an alpha that covers nothing
    assert picture_from("--image", str(path)).shape == (1, 2, 3)


# What has a row for each seed.
def test_a_grey_picture_starts_a_network_of_colours(tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (6, 5), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    _, asked = asked_from({"image": str(tmp_path / "grey.png")}, controlled("control_image", (3, 6, 5)), (3, 6, 5))
    np.testing.assert_array_equal(asked["image"], np.stack(3 * [pixels], axis=-1))


def test_texts_are_taken_in_turn_and_pictures_by_place() -> None:
    pictures, masks = np.zeros((3, 2, 2, 3), np.uint8), np.zeros((3, 2, 2), bool)
    asked = {"prompt": ["a", "b"], "negative_prompt": "c", "image": pictures, "mask": masks, "strength": 0.5}
    found = by_seed(asked, [5, 6, 8], 3)
    assert found.pop("image") is pictures
    assert found.pop("mask") is masks
    assert found == {"prompt": ["b", "a", "a"]}
    assert by_seed({"prompt": "a", "image": pictures[0], "mask": masks[:1]}, [5, 6], 3) == {}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"image": np.zeros((3, 2, 2, 3), np.uint8)}, "--image: 3 for 2 seeds; give 1, or one for each seed"),
        ({"mask": np.zeros((3, 2, 2), bool)}, "--mask: 3 for 2 seeds; give 1"),
        (
            {"prompt": "a", "negative_prompt": ["c", "d"]},
            "--negative-prompt: 2 for 1 of --prompt; give one, or as many",
        ),
        ({"prompt": ["a", "b"], "negative_prompt": ["c", "d", "e"]}, "--negative-prompt: 3 for 2 of --prompt"),
    ],
)
def test_other_numbers_of_them_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(pfdiff.InputError, match=message):
        by_seed(asked, [0, 1], 3)


def test_a_controlnets_picture_of_another_size_says_the_size(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 7, 3), np.uint8)).save(tmp_path / "edges.png")
    with pytest.raises(pfdiff.InputError, match=r"--control_image '.*': got 7 x 8 pixels, expected 5 x 6; resize it"):
        conditions_from(["--control_image", str(tmp_path / "edges.png")], controlled("control_image", (3, 6, 5)), 1)


def test_a_second_controlnet_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "fashion", "--nfe", "4", "--controlnet", "a", "--controlnet", "b"]) == 2
    assert "--controlnet is given 2 times, and an engine holds one" in capfd.readouterr().err
