"""`pfdiff-run --start --image --mask`: the same bits as Python's loop, and the program with its inputs replaced."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import pfdiff
from pfdiff.cli import main
from pfdiff.engine.artifact import read_artifact, records_of, write_manifest
from pfdiff.engine.contract.contract import DecoderContract
from pfdiff.engine.runtime.inputs import Inputs
from pfdiff.engine.runtime.loop import make_tables
from pfdiff.engine.runtime.pictures.masked import Masked, mask_of
from pfdiff.engine.runtime.pictures.picture_start import PictureStart, program_of
from pfdiff.engine.runtime.session import Session

from ..engine.runtime.pictures.test_masked import reference
from ..engine.runtime.test_session import Direct
from .test_native import gaussian
from .test_native_onnxruntime import LIBRARY_PATH, mock
from .tree import MARKS, SHAPE, built, run, write_engine, write_network

pytestmark = MARKS
__all__ = ["built", "mock"]  # fixtures, used by their names
SEEDS = range(6)
ELEMENTS = int(np.prod(SHAPE))
RNG = np.random.default_rng(8)
PICTURES = RNG.integers(0, 256, (len(SEEDS), *SHAPE[1:], SHAPE[0]), np.uint8)
MASKS = RNG.integers(0, 2, (len(SEEDS), *SHAPE[1:]), np.uint8)
FLOATS = torch.from_numpy(PICTURES).movedim(-1, 1).float() / 255 * 2 - 1


@pytest.fixture(scope="module")
def place(mock: Callable[[int], Path]) -> dict[str, str]:
    """Where the test's library in ONNX Runtime's place is found."""
    return {LIBRARY_PATH: str(mock(18))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine, pictures and masks: one for all, and one for each seed."""
    top = tmp_path_factory.mktemp("start")
    write_engine(top / "some.engine", "pfdiff:k=2,l=1", "cosine:300", 6)
    arrays = {"images": PICTURES, "image": PICTURES[0], "masks": MASKS, "mask": MASKS[0] * 255}
    arrays |= {"floats": FLOATS.numpy(), "grey": MASKS.astype(np.float32) * 0.4 + 0.3}
    for name, values in arrays.items():
        np.save(top / name, values)
    return top


def start_of(folder: Path, strength: float, name: str = "some.engine", **words: str) -> Path:
    path = folder / f"{name}-{strength}.json"
    extra = [one for key, value in words.items() for one in (f"--{key.replace('_', '-')}", value)]
    assert main(["table", "export", str(folder / name), "--strength", str(strength), "-o", str(path), *extra]) == 0
    return path


def sampled(built: Path, folder: Path, *words: Any, engine: str = "some.engine", **options: Any) -> np.ndarray:
    given = (built / "pfdiff-run", folder / engine, "--seeds", "0-5", *words, "-o", folder / "x.npy")
    run(*given, **options)
    return np.load(folder / "x.npy")


KINDS = [("images", "masks"), ("image", "mask"), ("floats", "grey"), ("images", ""), ("image", "masks"), ("image", "")]


@pytest.mark.parametrize(
    ("strength", "image", "mask"),
    [(strength, *kind) for strength in (0.25, 0.6, 1.0) for kind in KINDS if strength < 1 or kind[1]],
)
def test_the_same_bits_as_in_python(
    built: Path, folder: Path, place: dict[str, str], strength: float, image: str, mask: str
) -> None:
    artifact = read_artifact(folder / "some.engine")
    whole = artifact.programs[6]
    made = whole if strength == 1 else program_of(whole, strength, "part")
    tables = make_tables(made, artifact.contract, mixed=strength < 1)
    x_0 = FLOATS.reshape(len(SEEDS), -1)
    x_0 = x_0[:1].expand_as(x_0) if image == "image" else x_0
    z = pfdiff.noise(SEEDS, (ELEMENTS,))
    if strength < 1:
        z = PictureStart(artifact, cast(Any, None)).noise(x_0, z, tables)
    masked = None
    if mask:
        given = mask_of(np.load(folder / f"{mask}.npy"), SHAPE, artifact.contract, len(SEEDS))
        masked = Masked(x_0, given.expand(len(SEEDS), -1))
    session = Session(Direct(lambda x, t: x / 2), artifact.contract, (1, 4))
    expected = session.run(tables, Inputs(None, z, (), masked=masked)).numpy()

    words = ("--start", start_of(folder, strength), "--image", folder / f"{image}.npy")
    words += ("--mask", folder / f"{mask}.npy") if mask else ()
    found = sampled(built, folder, *words, "--threads", 2, env=place)
    assert np.array_equal(found, expected)
    if masked is not None:
        kept = masked.mask.reshape(found.shape).numpy() == 0
        assert np.array_equal(found[kept], x_0.reshape(found.shape).numpy()[kept])


def test_it_is_the_program_with_its_inputs_replaced(built: Path, folder: Path) -> None:
    """Independently of the loop: the exact network of Gaussian data, in float64."""
    artifact = read_artifact(folder / "some.engine")
    made = program_of(artifact.programs[6], 0.6, "part")
    exact = gaussian("cosine:300", "eps", 0.5)
    z, x_0 = pfdiff.noise(SEEDS, SHAPE).double(), FLOATS.double()
    content = json.loads(start_of(folder, 0.6).read_text())
    a, b = content["start"]
    whole = torch.from_numpy(MASKS)[:, None].expand(FLOATS.shape)
    expected = reference(
        made, z, x_0, whole, lambda x, t: torch.from_numpy(exact(x.numpy(), float(t))), start=a * x_0 + b * z
    )
    words = ("--network", "gaussian", "--start", start_of(folder, 0.6))
    found = sampled(built, folder, *words, "--image", folder / "images.npy", "--mask", folder / "masks.npy")
    assert np.linalg.norm(found - expected.numpy()) <= 1e-5 * np.linalg.norm(expected.numpy())


def test_a_latent_models_picture_is_encoded(built: Path, folder: Path, place: dict[str, str], tmp_path: Path) -> None:
    """The test's library makes a quarter of the picture, repeated, of it; latents may be given in its place."""
    engine, image = write_engine(folder / "latent.engine", "ddim", "cosine:300", 5), (3, 16, 14)
    (engine / "encoders").mkdir()
    for name in ("decoder.onnx", "encoders/image.onnx"):
        write_network(engine / name)
    artifact = read_artifact(engine)
    decoder = DecoderContract("twice", SHAPE, image)
    encoder = DecoderContract("half", image, SHAPE, input="latents", output="latents")
    files = records_of(engine)
    write_manifest(replace(artifact, decoder=decoder, image_encoder=encoder, files=files))
    shown = RNG.integers(0, 256, (16, 14, 3), np.uint8)
    np.save(tmp_path / "shown", shown)
    floats = (torch.from_numpy(shown).movedim(-1, 0).float() / 255 * 2 - 1).reshape(-1)
    np.save(tmp_path / "latents", (floats[:ELEMENTS] / 4).reshape(SHAPE).numpy())
    mask = np.kron(MASKS[0], np.ones((2, 2), np.uint8))
    np.save(tmp_path / "mask", mask)
    given: dict[str, Any] = {"env": place, "engine": "latent.engine"}
    start = ("--start", start_of(folder, 0.5, "latent.engine"))
    pixels = sampled(built, folder, *start, "--image", tmp_path / "shown.npy", "--mask", tmp_path / "mask.npy", **given)
    small = sampled(built, folder, *start, "--image", tmp_path / "latents.npy", "--mask", folder / "mask.npy", **given)
    assert np.array_equal(pixels, small)
    kept = np.broadcast_to(MASKS[0] == 0, SHAPE)
    assert np.array_equal(pixels[0][kept], np.load(tmp_path / "latents.npy")[kept])


def test_what_does_not_fit_is_one_line(built: Path, folder: Path, tmp_path: Path) -> None:
    start, image = start_of(folder, 0.6), folder / "images.npy"
    np.save(tmp_path / "two.npy", PICTURES[:2])
    np.save(tmp_path / "wide.npy", np.zeros((8, 8, 3), np.uint8))
    np.save(tmp_path / "nan.npy", np.full(SHAPE, np.nan, np.float32))
    np.save(tmp_path / "many.npy", np.full(SHAPE[1:], 2, np.int64))
    (tmp_path / "none.json").write_text("{}")
    content = json.loads(start.read_text())
    (tmp_path / "nan.json").write_text(json.dumps({**content, "start": [1e400, 0]}).replace("Infinity", "1e999"))
    other = {**content, "program": {**content["program"], "schedule": "vp"}}
    (tmp_path / "vp.json").write_text(json.dumps(other))
    short = {**content, "known": content["known"][:-1]}
    (tmp_path / "short.json").write_text(json.dumps(short))
    cases: list[tuple[tuple[Any, ...], str]] = [
        (("--image", image), "--start and --image belong together; write --start by `pfdiff table export --strength"),
        (("--start", start), "--start and --image belong together"),
        (("--mask", image), "--mask without --image, of which it says what is kept"),
        (
            ("--start", start, "--image", tmp_path / "two.npy"),
            "--image: got |u1 [2, 8, 7, 3], expected uint8 [",
        ),
        (("--start", start, "--image", tmp_path / "wide.npy"), "or one for each seed; resize it to 7 x 8 pixels"),
        (("--start", start, "--image", tmp_path / "nan.npy"), "--image has NaN or infinite values"),
        (
            ("--start", start, "--image", image, "--mask", tmp_path / "wide.npy"),
            "--mask: got [8, 8, 3], expected [",
        ),
        (("--start", start, "--image", image, "--mask", tmp_path / "many.npy"), "--mask has values outside 0 to 1"),
        (("--start", tmp_path / "no.json", "--image", image), "is missing, empty or larger than 16 MiB"),
        (("--start", tmp_path / "none.json", "--image", image), "start: format is missing"),
        (("--start", tmp_path / "nan.json", "--image", image), "start"),
        (("--start", tmp_path / "short.json", "--image", image), "start: known"),
        (
            ("--start", tmp_path / "vp.json", "--image", image),
            "is of schedule 'vp' and eps, this engine of",
        ),
        (("--start", start, "--image", image, "--nfe", "5"), "--nfe 5, but --start was written for 6 evaluations"),
        (("--start", start_of(folder, 1), "--image", image), "strength 1 starts from noise alone; give --mask"),
    ]
    for words, says in cases:
        given = (built / "pfdiff-run", folder / "some.engine", "--seeds", "0-5", "--network", "gaussian", *words)
        said = run(*given, "-o", tmp_path / "y.npy", status=2)
        assert says in said, (words, said)
        assert said.count("\n") == 1
    assert not (tmp_path / "y.npy").exists()


def test_a_start_as_diffusers_counts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = start_of(folder, 0.5, strength_counts="whole")
    assert json.loads(path.read_text())["program"]["nfe"] == 3
    assert main(["table", "export", str(folder / "some.engine"), "--strength", "2", "-o", str(path)]) == 2
    assert "--strength 2.0, expected a number above 0 and at most 1" in capsys.readouterr().err
    assert main(["table", "import", str(path), str(folder / "some.engine")]) == 2
    assert "format 'pfdiff-start 1', expected 'pfdiff-table 1'" in capsys.readouterr().err
