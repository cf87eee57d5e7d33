"""Decoders in every form become part of an engine: modules, autoencoders, ONNX files; and what does not fit."""

from __future__ import annotations

import importlib.util
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import pfdiff
from pfdiff.cli import main
from pfdiff.engine.errors import InputError
from pfdiff.export.check import OnnxRun
from pfdiff.export.decoders.options import Decoder, parse_decoder
from pfdiff.export.network import open_decoder

from ..small.latent import (
    IMAGE,
    SCALING,
    SHAPE,
    WORDS,
    Denoiser,
    Upsampler,
    assert_same_pixels,
    autoencoder,
    pixels_of,
)


# Precision and constants.
class Configured(Upsampler):
    """An autoencoder as far as a decoder sees one."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = types.SimpleNamespace(**config)

    def decode(self, latents: Tensor) -> Tensor:
        return self(latents)


def test_an_autoencoder_that_overflows_in_fp16_stays_in_fp32(tmp_path: Path) -> None:
    contract = pfdiff.Contract(**WORDS)
    safe = open_decoder(Configured(force_upcast=True), contract)
    assert safe.write(tmp_path, "fp16", print).precision == "fp32"
    asked = open_decoder(Decoder(Configured(force_upcast=True), precision="fp16"), contract)
    assert asked.write(tmp_path, "fp16", print).precision == "fp16"
    run = OnnxRun(tmp_path / "decoder.onnx", ("latents",), "image")
    latents = np.random.default_rng(0).standard_normal((2, *SHAPE), np.float32)
    np.testing.assert_allclose(run((latents,)), Upsampler()(torch.from_numpy(latents)).detach().numpy(), atol=4e-3)


def test_mean_and_deviation_of_the_latents_one_a_channel() -> None:
    mean, deviation = [0.1, -0.2, 0.3, 0.0], [0.5, 1.0, 2.0, 1.5]
    vae = autoencoder(latents_mean=mean, latents_std=deviation)
    decoder = open_decoder(vae, pfdiff.Contract(**WORDS))
    latents = torch.randn(2, *SHAPE)
    column = [torch.tensor(one).reshape(1, 4, 1, 1) for one in (mean, deviation)]
    with torch.no_grad():
        wanted = vae.decode(latents * column[1] / SCALING + column[0]).sample  # as StableDiffusionXLPipeline has it
    assert decoder.module is not None
    torch.testing.assert_close(decoder.module(latents).detach(), wanted, atol=1e-5, rtol=1e-5)


def test_a_module_that_needs_numbers_is_run_for_its_shape() -> None:
    decoder = Upsampler()
    decoder.table = torch.ones(4, 1, 1)  # no buffer
    decoder.register_forward_pre_hook(lambda module, latents: latents[0] * module.table)
    assert open_decoder(decoder, pfdiff.Contract(**WORDS)).contract.image == IMAGE


# An ONNX file.
@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.onnx.export(
        Upsampler(),
        (torch.zeros(2, *SHAPE),),
        tmp_path / "up.onnx",
        dynamo=True,
        opset_version=18,
        input_names=["z"],
        output_names=["latents"],  # on purpose
        dynamic_shapes=({0: torch.export.Dim("n", min=1, max=9)},),
        verbose=False,
    )
    return tmp_path / "up.onnx"


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_decoder_from_an_onnx_file(file: Path, tmp_path: Path) -> None:
    words = {**WORDS, "data_range": (0.0, 1.0)}  # of the images
    network = pfdiff.Network(Denoiser(), **words, decoder=f"{file},scaling=0.5,shift=-0.25")
    with pfdiff.build(network, 4, "ddim", batch=2, out=tmp_path / "e", backend="onnxruntime") as engine:
        assert engine.decoder is not None
        assert (engine.decoder.scaling, engine.decoder.image) == (0.5, IMAGE)
        images = Upsampler()(engine.sample(seeds=range(2)) / 0.5 - 0.25).detach()
        assert_same_pixels(engine.images(seeds=range(2)), pixels_of(2 * images - 1))
    with pytest.raises(
        InputError, match=r"it takes z float32 \[\?, 4, 6, 5\], expected .* \[batch, 4, 8, 8\], the sam"
    ):
        pfdiff.Network(Denoiser(), **{**WORDS, "shape": (4, 8, 8)}, decoder=file)
    with pytest.raises(InputError, match="holds fp32 weights and is not converted to fp16"):
        pfdiff.Network(Denoiser(), **WORDS, decoder=f"{file},precision=fp16")


# What does not fit.
class Flat(nn.Module):
    def forward(self, latents: Tensor) -> Tensor:
        return latents.flatten(1)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (
            lambda: autoencoder(latent_channels=8),
            r"'AutoencoderKL': it takes latents of 8 channels, samples of network",
        ),
        (
            lambda: Upsampler(8),
            r"'Upsampler': it fails with latents \[1, 4, 6, 5\], samples of network 'latent' \(Runt",
        ),
        (Flat, r"decoder 'Flat': it returns \[1, 120\] for a batch of 1, expected images \[1, C, H, W\]"),
        (
            lambda: Decoder(Upsampler(), scaling=(1.0, 2.0)),
            r"decoder: scaling \(1.0, 2.0\), expected a number other th",
        ),
        (lambda: Decoder(Upsampler(), scaling=0.0), "decoder: scaling 0.0, expected a number other than 0"),
        (lambda: Decoder(Upsampler(), shift=float("nan")), "decoder: shift nan, expected a number, or 4"),
        (lambda: Decoder(Upsampler(), precision="int8"), "decoder: precision 'int8', expected one of fp32, fp16, bf16"),
        (lambda: 7, "decoder: got int, expected a module, file.py:factory, a diffusers folder or an .onnx"),
        (lambda: "vae.bin", "decoder 'vae.bin': not known; expected a module, file.py"),
        (lambda: "vae.py:load,scale=2", "decoder 'vae.py:load,scale=2': got 'scale=2', expected"),
        (lambda: "vae.onnx,scaling=big", "'big' is no number, expected for instance scaling=0.18215"),
    ],
)
def test_what_does_not_fit_is_one_line(decoder: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        pfdiff.Network(Denoiser(), **WORDS, decoder=decoder())
    assert "\n" not in str(caught.value)


def test_the_words_of_a_decoder() -> None:
    assert parse_decoder("vae.py:load") == Decoder("vae.py:load")
    asked = parse_decoder("a.onnx, scaling=0.13025, shift=1, precision=fp16")
    assert asked == Decoder("a.onnx", scaling=0.13025, shift=1.0, precision="fp16")


# The command line.
MODULES = """
import torch
from torch import nn

class Denoiser(nn.Module):
    def forward(self, x, t):
        return torch.tanh(x) + 0.001 * t[:, None, None, None]

class Twice(nn.Module):
    def forward(self, latents):
        return nn.functional.interpolate(latents[:, :3], scale_factor=2.0)
"""


def test_the_command_line_builds_says_and_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(MODULES)
    words = ["--shape", "4x6x5", "--schedule", "linear:1000", "--prediction", "eps", "--nfe", "4", "--device", "cpu"]
    assert main(["build", "nets.py:Denoiser", *words, "--decoder", "nets.py:Twice,scaling=0.5", "-o", "a.engine"]) == 0
    assert main(["info", "a.engine"]) == 0
    assert "Twice: latents / 0.5 + 0 -> image [3, 12, 10], fp32" in capsys.readouterr().out
    assert main(["sample", "a.engine", "--seeds", "0-3", "--device", "cpu", "-o", "latents.npy"]) == 0
    assert main(["sample", "a.engine", "--seeds", "0-3", "--device", "cpu", "-o", "pictures"]) == 0
    assert main(["export", "a.engine", "-o", "one.onnx"]) == 0
    assert "its samples are latents" in " ".join(capsys.readouterr().out.split())
    latents = torch.from_numpy(np.load("latents.npy"))
    assert main(["export", "a.engine", "--pixels", "-o", "pixels.onnx"]) == 0
    session = onnxruntime.InferenceSession("pixels.onnx", providers=["CPUExecutionProvider"])
    noise = {"noise": pfdiff.noise(range(4), SHAPE).numpy()}
    samples, pixels = (np.asarray(one) for one in session.run(["samples", "pixels"], noise))
    np.testing.assert_allclose(samples, latents, atol=1e-5, rtol=1e-5)
    assert_same_pixels(
        torch.from_numpy(pixels), pixels_of(nn.functional.interpolate(latents[:, :3] / 0.5, scale_factor=2.0))
    )
    assert main(["export", "a.engine", "--pixels", "--triton", "-o", "models"]) == 2
    images = nn.functional.interpolate(latents[:, :3] / 0.5, scale_factor=2.0)
    for seed, wanted in enumerate(pixels_of(images)):
        with Image.open(f"pictures/{seed:06d}.png") as picture:
            assert_same_pixels(torch.from_numpy(np.array(picture)), wanted)
    assert main(["build", "nets.py:Denoiser", *words, "--decoder", "nets.py:Denoiser", "-o", "b.engine"]) == 2
    assert "decoder 'Denoiser': it fails with latents [1, 4, 6, 5]" in capsys.readouterr().err
    assert not Path("b.engine").exists()


class Video(nn.Module):
    """Two frames of three channels for each of the four latents' places."""

    def forward(self, latents: Tensor) -> Tensor:
        return torch.stack((latents[:, :3], latents[:, 1:]), 2)


def test_a_video_becomes_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    network = pfdiff.Network(Denoiser(), **WORDS, decoder=Video())
    with pfdiff.build(network, 3, "ddim", backend="onnxruntime", device="cpu", batch=2, out="v.engine") as engine:
        latents, pixels = engine.sample(seeds=[3, 4, 5]), engine.images(seeds=[3, 4, 5])
    assert pixels.shape == (3, 2, 6, 5, 3)
    for frame in range(2):
        assert_same_pixels(pixels[:, frame], pixels_of(latents[:, frame : frame + 3]))
    assert main(["sample", "v.engine", "--seeds", "3,4", "--device", "cpu", "-o", "frames"]) == 0
    names = ["000003_000.png", "000003_001.png", "000004_000.png", "000004_001.png"]
    assert sorted(one.name for one in Path("frames").iterdir()) == names
    with Image.open("frames/000004_001.png") as picture:
        assert_same_pixels(torch.from_numpy(np.array(picture)), pixels[1, 1])
    assert main(["sample", "v.engine", "--seeds", "3", "--device", "cpu", "-o", "grid.png"]) == 2
    assert "videos of 2 frames are no grid; write .mp4" in capsys.readouterr().err
    if importlib.util.find_spec("av") is not None:  # what is in it: tests/quality/pictures/test_video.py
        assert main(["sample", "v.engine", "--seeds", "3-5", "--device", "cpu", "-o", "v.mp4"]) == 0
        assert Path("v.mp4").read_bytes()[4:8] == b"ftyp"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert main(["sample", "v.engine", "--seeds", "3", "--device", "cpu", "-o", "w.mp4"]) == 2
    assert "needs PyAV; pip install 'pfdiff[video]', or name a folder for frames" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(["export", "v.engine", "--pixels", "-o", "v.onnx"]) == 0
    session = onnxruntime.InferenceSession("v.onnx", providers=["CPUExecutionProvider"])
    (shown,) = session.run(["pixels"], {"noise": pfdiff.noise([3, 4, 5], SHAPE).numpy()})
    assert_same_pixels(torch.from_numpy(shown), pixels)
