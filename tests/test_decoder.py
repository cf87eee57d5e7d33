"""Latent models: the decoder beside its network, compared with plain loops, on every backend; what does not fit."""

from __future__ import annotations

import json
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import pfdiff
from pfdiff.cli import main
from pfdiff.engine import plans
from pfdiff.engine.artifact import read_artifact, write_manifest
from pfdiff.engine.contract import DecoderContract
from pfdiff.engine.decoder import LoadedDecoder
from pfdiff.engine.errors import EngineFileError, InputError
from pfdiff.engine.schedule import parse_schedule
from pfdiff.export.check import OnnxRun
from pfdiff.export.decoder import Decoder, parse_decoder
from pfdiff.export.judging import chosen_seeds
from pfdiff.export.sources import open_decoder
from pfdiff.kernels import eager

from .test_session import Direct

diffusers = pytest.importorskip("diffusers", reason="the autoencoder is diffusers'")

SHAPE, IMAGE = (4, 6, 5), (3, 12, 10)
SCALING, SHIFT = 0.3, 0.1
WORDS: dict[str, Any] = {"shape": SHAPE, "schedule": "linear:1000", "prediction": "eps", "name": "latent"}


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 0.9, 4).reshape(4, 1, 1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(self.weight * x) + 0.001 * t.to(x.dtype)[:, None, None, None]


class Wide(nn.Module):
    """eps of data N(0, 5^2), exactly."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        process = parse_schedule("linear:1000")
        alpha, sigma = (torch.from_numpy(one(t.double().numpy())) for one in (process.alpha, process.sigma))
        weight = (sigma / (25 * alpha**2 + sigma**2)).reshape(-1, 1, 1, 1)
        return (weight * x).to(x.dtype)


class Upsampler(nn.Module):
    """A decoder without a config: two images' rows and columns for each latent."""

    def __init__(self, channels: int = 4, images: int = 3) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(channels, 4 * images, 1)

    def forward(self, latents: Tensor) -> Tensor:
        return torch.tanh(nn.functional.pixel_shuffle(self.conv(latents), 2))


def autoencoder(**config: Any) -> Any:
    """A small AutoencoderKL with random weights."""
    torch.manual_seed(1)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (4, 8), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 2}
    constants = {"scaling_factor": SCALING, "shift_factor": SHIFT}
    return diffusers.AutoencoderKL(**{**blocks, **sizes, **constants, "sample_size": 12, **config}).eval()


@pytest.fixture(scope="module")
def vae() -> Any:
    return autoencoder()


@pytest.fixture(scope="module")
def built(vae: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("latent") / "latent.engine"
    network = pfdiff.Network(Denoiser(), **WORDS, decoder=vae)
    pfdiff.build(network, 4, "ddim", grid="trailing", batch=[1, 3], backend="onnxruntime", out=out).close()
    return out


@torch.no_grad()
def decoded(vae: Any, latents: Tensor, scaling: Any = SCALING, shift: Any = SHIFT) -> Tensor:
    """As diffusers' pipelines decode."""
    return vae.decode(latents / scaling + shift).sample


def pixels_of(images: Tensor) -> Tensor:
    pixels = torch.empty((len(images), *images.shape[2:], images.shape[1]), dtype=torch.uint8)
    eager.images(pixels, images, -1.0, 1.0)
    return pixels


def assert_same_pixels(got: Tensor, wanted: Tensor) -> None:
    """At most one level apart, where rounding falls the other way."""
    difference = (got.int() - wanted.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01


# Sampling.
def test_the_exported_decoder_equals_the_autoencoder(built: Path, vae: Any) -> None:
    run = OnnxRun(built / "decoder.onnx", ("latents",), "image")
    for batch in (1, 3):
        latents = torch.randn(batch, *SHAPE)
        wanted = decoded(vae, latents)
        np.testing.assert_allclose(run((latents.numpy(),)), wanted.numpy(), atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_images_are_the_decoded_samples(built: Path, vae: Any, backend: str) -> None:
    modules: dict[str, Any] = {}
    if backend == "openvino":
        pytest.importorskip("openvino")
    if backend == "torch":
        decoder = open_decoder(vae, pfdiff.Contract(**WORDS))
        modules = {"module": Denoiser(), "decoder_module": decoder.module}
    with pfdiff.load(built, "cpu", backend, **modules) as engine:
        assert engine.decoder is not None
        assert backend in engine.decoding
        latents = engine.sample(seeds=range(4))
        assert latents.shape == (4, *SHAPE)
        images = engine.images(seeds=range(4))  # a full bucket of 3, and one of 1
        assert images.shape == (4, 12, 10, 3)
        assert_same_pixels(images, pixels_of(decoded(vae, latents)))
        assert torch.equal(engine.images(seeds=[2]), images[2:3])


def test_without_its_module_another_backend_decodes(built: Path) -> None:
    with pfdiff.load(built, "cpu", "torch", module=Denoiser()) as engine:
        assert "onnxruntime" in engine.decoding
        assert engine.images(seeds=[1]).shape == (1, 12, 10, 3)


# The directory.
def test_what_the_engine_says_of_its_decoder(built: Path) -> None:
    artifact = read_artifact(built)
    assert sorted(artifact.files) == ["decoder.onnx", "network.onnx"]
    assert artifact.decoder == DecoderContract("AutoencoderKL", SHAPE, IMAGE, scaling=SCALING, shift=SHIFT)
    entry = json.loads((built / "engine.json").read_text())["decoder"]
    assert (entry["image"], entry["precision"]) == ([3, 12, 10], "fp32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (4, 6, 6)}, r"its decoder takes \[4, 6, 6\], the network makes \[4, 6, 5\]"),
        ({"image": (3, 12)}, r"decoder: image \[3, 12\], expected \[C, H, W\]"),
        ({"scaling": (1.0, 2.0)}, r"decoder: scaling \(1.0, 2.0\), expected a number other than 0, or 4"),
    ],
)
def test_a_manifest_whose_decoder_does_not_fit(
    change: dict[str, Any], message: str, built: Path, tmp_path: Path
) -> None:
    artifact = read_artifact(built)
    assert artifact.decoder is not None
    for name in artifact.files:
        (tmp_path / name).write_bytes((built / name).read_bytes())
    described = artifact.decoder.to_dict() | change
    forged = replace(artifact, path=tmp_path, decoder=_Described(described))  # type: ignore[arg-type]
    write_manifest(forged)
    with pytest.raises(EngineFileError, match=message) as caught:
        read_artifact(tmp_path)
    assert "\n" not in str(caught.value)


class _Described:
    """What a forger writes."""

    def __init__(self, described: dict[str, Any]) -> None:
        self.described = described

    def to_dict(self) -> dict[str, Any]:
        return self.described


def test_a_missing_decoder_file(built: Path, tmp_path: Path) -> None:
    artifact = read_artifact(built)
    (tmp_path / "network.onnx").write_bytes((built / "network.onnx").read_bytes())
    files = {name: record for name, record in artifact.files.items() if name == "network.onnx"}
    write_manifest(replace(artifact, path=tmp_path, files=files))
    with pytest.raises(EngineFileError, match=r"'decoder.onnx' is not among its files"):
        read_artifact(tmp_path)


def test_what_is_up_to_date_is_left_alone_and_another_decoder_is_built(built: Path, vae: Any, tmp_path: Path) -> None:
    stages: list[str] = []
    settings: dict[str, Any] = {"grid": "trailing", "backend": "onnxruntime", "out": built, "progress": stages.append}
    pfdiff.build(pfdiff.Network(Denoiser(), **WORDS, decoder=vae), 4, "ddim", **settings).close()
    assert stages[-1] == f"{built} is up to date: nothing to do"

    former = read_artifact(built)
    settings["out"] = tmp_path / "e"
    upsampler = pfdiff.Network(Denoiser(), **WORDS, decoder=Upsampler())
    pfdiff.build(upsampler, 4, "ddim", **settings).close()
    other = read_artifact(tmp_path / "e")
    assert other.provenance["network_digest"] == former.provenance["network_digest"]
    assert other.provenance["decoder_digest"] != former.provenance["decoder_digest"]
    pfdiff.build(pfdiff.Network(Denoiser(), **WORDS), 4, "ddim", **settings).close()
    bare = read_artifact(tmp_path / "e")
    assert bare.decoder is None
    assert list(bare.files) == ["network.onnx"]


# Precision and constants.
def test_a_decoder_in_half_precision_gets_half_precision_latents() -> None:
    seen: list[torch.dtype] = []

    def half(latents: Tensor) -> Tensor:
        seen.append(latents.dtype)
        return Upsampler()(latents.float()).detach().half()

    loaded = LoadedDecoder(_decoding(half, torch.float16), DecoderContract("up", SHAPE, IMAGE, precision="fp16"))
    samples = torch.randn(2, *SHAPE)
    images = loaded.bind(samples)()
    assert seen == [torch.float16]
    assert images.dtype == torch.float32
    assert torch.allclose(images, Upsampler()(samples), atol=2e-3)
    assert loaded.bytes_per_sample == 4 * 360 + 2 * (120 + 360)
    exact = LoadedDecoder(_decoding(half, torch.float32), loaded.contract)
    assert exact.bytes_per_sample == 4 * 360


def _decoding(function: Any, dtype: torch.dtype) -> Direct:
    return Direct(lambda latents, _: function(latents), dtype)


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


# Judging.
def test_latents_are_judged_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents lie far outside the images' data range, and an error there counts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network = pfdiff.Network(Wide(), **WORDS, decoder=Upsampler())
    settings: dict[str, Any] = {"grid": "trailing", "seeds": 4, "reference": 40}
    found = pfdiff.compare(network, 4, ["ddim"], **settings)
    program, truth = found.points[0].program, found.reference_samples
    assert program is not None
    sample = program.evaluate(lambda x, t: Wide()(x, torch.tensor([t])), pfdiff.noise(chosen_seeds(0, 0, 4), SHAPE))
    assert np.abs(truth).max() > 2
    error = np.sqrt(np.mean((sample.double().numpy() - truth) ** 2))
    assert found.points[0].error == pytest.approx(error, rel=1e-4)
    clamped = pfdiff.compare(pfdiff.Network(Wide(), **WORDS), 4, ["ddim"], **settings)
    assert clamped.points[0].error < error
    with pytest.raises(InputError, match=r"sheet.png: latents of shape \[4, 6, 5\] are no pictures; leave it out"):
        pfdiff.compare(network, 4, ["ddim"], **settings, sheet=tmp_path / "sheet.png")


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
        (lambda: 7, "decoder: got int, expected a module, file.py:factory or an .onnx file"),
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


# TensorRT-RTX and the command line.
@pytest.mark.slow
def test_rtx_builds_the_decoder(built: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    artifact = read_artifact(built)
    assert plans.build_plan(artifact, plans.plan_key(artifact, "tensorrt_rtx", "sm89", file="decoder.onnx"))


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
    images = nn.functional.interpolate(latents[:, :3] / 0.5, scale_factor=2.0)
    for seed, wanted in enumerate(pixels_of(images)):
        with Image.open(f"pictures/{seed:06d}.png") as picture:
            assert_same_pixels(torch.from_numpy(np.array(picture)), wanted)
    assert main(["build", "nets.py:Denoiser", *words, "--decoder", "nets.py:Denoiser", "-o", "b.engine"]) == 2
    assert "decoder 'Denoiser': it fails with latents [1, 4, 6, 5]" in capsys.readouterr().err
    assert not Path("b.engine").exists()
