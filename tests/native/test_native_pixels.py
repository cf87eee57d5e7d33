"""Pixels from the native runtime: pfd_pixels by bits, decoders by ONNX Runtime's adapter, `pfdiff-run --pixels`."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import pfdiff
from pfdiff.engine.artifact import read_artifact, records_of, write_manifest
from pfdiff.engine.contract.contract import DecoderContract
from pfdiff.kernels import eager

from .test_native import library, pointer
from .test_native_onnxruntime import mock
from .test_native_start import place
from .tree import MARKS, SHAPE, built, onnxruntime_root, run, write_engine, write_network

pytestmark = MARKS
__all__ = ["built", "library", "mock", "place"]  # fixtures, used by their names
IMAGE = (3, 4, 14)


@pytest.mark.parametrize("limits", [(-1.0, 1.0), (0.0, 1.0), (-2.5, 7.0)])
def test_the_same_bits_as_in_python(library: ctypes.CDLL, limits: tuple[float, float]) -> None:
    low, high = limits
    halves = low + (np.arange(256, dtype=np.float32) + 0.5) * (high - low) / 255
    odd = [np.nan, np.inf, -np.inf, low, high, low - 1, high + 1, -0.0, 3e38, 1e-40]
    values = np.concatenate([halves, np.array(odd, np.float32), np.random.default_rng(1).normal(0, 2, 814)])
    x = values.astype(np.float32).reshape(4, 3, 5, 18)
    expected = torch.empty(4, 5, 18, 3, dtype=torch.uint8)
    eager.images(expected, torch.from_numpy(x), low, high)
    found = np.empty((4, 5, 18, 3), np.uint8)
    doubles = ctypes.c_double(low), ctypes.c_double(high)
    sizes = ctypes.c_int64(4), ctypes.c_int64(3), ctypes.c_int64(90)
    assert library.pfd_pixels(pointer(x), *sizes, *doubles, pointer(found)) == 0
    assert np.array_equal(found, expected.numpy())
    assert library.pfd_pixels(pointer(x), *sizes, doubles[1], doubles[0], pointer(found)) == 1
    assert b"expected sizes of at least 1 and a range" in library.pfd_last_error()
    assert library.pfd_pixels(pointer(x), *sizes, *doubles, None) == 1


def latent_engine(folder: Path, **decoder: object) -> Path:
    """The gaussian engine with a decoder: of the test's library, a quarter of the latents, repeated."""
    write_engine(folder, "ddim", "cosine:300")
    write_network(folder / "decoder.onnx")
    artifact = read_artifact(folder)
    contract = DecoderContract("quarter", SHAPE, **{"image": IMAGE, **decoder})
    batch = (contract.fixed_batch,) if contract.fixed_batch else artifact.batch
    write_manifest(replace(artifact, batch=batch, decoder=contract, files=records_of(folder)))
    return folder


def decoded(samples: np.ndarray, image: tuple[int, ...]) -> np.ndarray:
    """uint8 [n, *sides, C] of what that decoder makes."""
    flat = samples.reshape(len(samples), -1)
    repeated = np.tile(flat, -(-int(np.prod(image)) // flat.shape[1]))[:, : int(np.prod(image))]
    x = torch.from_numpy(repeated.reshape(len(flat), *image).astype(np.float32) / 4)
    pixels = torch.empty(len(flat), int(np.prod(image[1:])), 1, image[0], dtype=torch.uint8)
    eager.images(pixels, x.reshape(len(flat), image[0], -1, 1), -1.0, 1.0)
    return pixels.numpy().reshape(len(flat), *image[1:], image[0])


@pytest.mark.parametrize(("image", "fixed"), [(IMAGE, None), ((3, 2, 4, 14), None), (IMAGE, 4)])
def test_latents_become_pixels(
    built: Path, tmp_path: Path, place: dict[str, str], image: tuple[int, ...], fixed: int | None
) -> None:
    """Pictures, videos, and a decoder of one batch size, which gets its fill; seven seeds in batches of four."""
    folder = latent_engine(tmp_path / "latent.engine", image=image, fixed_batch=fixed)
    words = (built / "pfdiff-run", folder, "--network", "gaussian", "--seeds", "0-6")
    run(*words, "-o", tmp_path / "x.npy")
    samples = np.load(tmp_path / "x.npy")
    said = run(*words, "--pixels", "-o", tmp_path / "pixels.npy", env=place)
    assert said.endswith("mock: 0 objects left\n")
    pixels = np.load(tmp_path / "pixels.npy")
    assert (pixels.dtype, pixels.shape) == (np.uint8, (7, *image[1:], image[0]))
    assert np.array_equal(pixels, decoded(samples, image))
    assert pixels.std() > 10


def test_samples_that_are_pictures_need_no_decoder(built: Path, tmp_path: Path) -> None:
    folder = write_engine(tmp_path / "plain.engine", "ddim", "cosine:300")
    words = (built / "pfdiff-run", folder, "--network", "gaussian", "--seeds", "0-4")
    run(*words, "-o", tmp_path / "x.npy")
    run(*words, "--pixels", "-o", tmp_path / "pixels.npy")
    expected = torch.empty(5, *SHAPE[1:], SHAPE[0], dtype=torch.uint8)
    eager.images(expected, torch.from_numpy(np.load(tmp_path / "x.npy")), -1.0, 1.0)
    assert np.array_equal(np.load(tmp_path / "pixels.npy"), expected.numpy())


def test_what_is_wrong_with_a_decoder_is_one_line(
    built: Path, library: ctypes.CDLL, tmp_path: Path, place: dict[str, str]
) -> None:
    folder = latent_engine(tmp_path / "latent.engine")
    words = (built / "pfdiff-run", folder, "--network", "gaussian", "--pixels", "-o", tmp_path / "y.npy")
    for variable, what in (("MOCK_LOAD_FAILS", "load"), ("MOCK_RUN_FAILS", "run")):
        said = run(*words, env=place | {variable: "no"}, status=1)
        assert f"pfdiff-run: ONNX Runtime fails to {what} decoder.onnx: no\n" in said
    assert not (tmp_path / "y.npy").exists()
    # Manifests, sealed again.
    for wrong, says in (
        ({"shape": (3, 8, 8)}, "decoder.shape is another one, expected the shape of the network's samples"),
        ({"precision": "int8"}, "decoder.precision is 'int8', expected one of fp32, fp16, bf16"),
        ({"image": (8, 8)}, "decoder.image is of 2 sizes, expected [C, H, W] or [C, frames, H, W]"),
    ):
        broken = latent_engine(tmp_path / f"{next(iter(wrong))}.engine")
        artifact = read_artifact(broken)
        assert artifact.decoder is not None
        contract = object.__new__(DecoderContract)
        contract.__dict__.update({**vars(artifact.decoder), **wrong})
        write_manifest(replace(artifact, decoder=contract))
        engine = ctypes.c_void_p()
        assert library.pfd_open(str(broken).encode(), ctypes.byref(engine)) == 2
        assert says in library.pfd_last_error().decode()
    (folder / "decoder.onnx").unlink()
    engine = ctypes.c_void_p()
    assert library.pfd_open(str(folder).encode(), ctypes.byref(engine)) == 2
    assert "decoder.onnx" in library.pfd_last_error().decode()


def test_onnxruntime_itself_decodes_what_python_decodes(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if onnxruntime_root() is None:
        pytest.skip("ONNX Runtime's C header is not installed; set ONNXRUNTIME_ROOT")
    import onnxruntime

    from ..small.latent import WORDS, Denoiser, Upsampler

    (wheel,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.*" + onnxruntime.__version__)
    monkeypatch.setenv("PFDIFF_ONNXRUNTIME", str(wheel))
    network = pfdiff.Network(Denoiser(), **WORDS, decoder=Upsampler())
    given = {"solver": "pfdiff:k=2,l=1", "backend": "onnxruntime", "device": "cpu", "batch": [1, 4]}
    with pfdiff.build(network, 4, **given, out=tmp_path / "latent.engine") as engine:
        expected = engine.images(seeds=range(6)).numpy()
    words = ("--network", "onnxruntime", "--seeds", "0-5", "--threads", 1, "--pixels", "-o", tmp_path / "pixels.npy")
    run(built / "pfdiff-run", tmp_path / "latent.engine", *words)
    found = np.load(tmp_path / "pixels.npy")
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert np.mean(found == expected) > 0.99
    assert found.std() > 10
