"""Engines of latent models: the decoder beside its network, compared with plain loops, on every backend."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pfdiff
from pfdiff.engine.artifact import read_artifact, write_manifest
from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.engine.contract.contract import DecoderContract
from pfdiff.engine.errors import EngineFileError, InputError
from pfdiff.engine.plans.build import build_plan
from pfdiff.engine.plans.key import plan_key
from pfdiff.engine.runtime.decoder import LoadedDecoder
from pfdiff.export.check import OnnxRun
from pfdiff.export.decoders.open import open_decoder
from pfdiff.quality.sampling.seeds import chosen_seeds

from ...small.latent import (
    IMAGE,
    SCALING,
    SHAPE,
    SHIFT,
    WORDS,
    Denoiser,
    Upsampler,
    assert_same_pixels,
    autoencoder,
    decoded,
    pixels_of,
)
from .test_session import Direct


@pytest.fixture(scope="module")
def vae() -> Any:
    return autoencoder()


@pytest.fixture(scope="module")
def built(vae: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("latent") / "latent.engine"
    network = pfdiff.Network(Denoiser(), **WORDS, decoder=vae)
    pfdiff.build(network, 4, "ddim", grid="trailing", batch=[1, 3], backend="onnxruntime", out=out).close()
    return out


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
    assert sorted(artifact.files) == ["decoder.onnx", "encoders/image.onnx", "network.onnx"]
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
        (tmp_path / name).parent.mkdir(exist_ok=True)
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


# Precision.
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


# Judging.
class Wide(nn.Module):
    """eps of data N(0, 5^2), exactly."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        process = parse_schedule("linear:1000")
        alpha, sigma = (torch.from_numpy(one(t.double().numpy())) for one in (process.alpha, process.sigma))
        weight = (sigma / (25 * alpha**2 + sigma**2)).reshape(-1, 1, 1, 1)
        return (weight * x).to(x.dtype)


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


# TensorRT-RTX.
@pytest.mark.slow
def test_rtx_builds_the_decoder(built: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    artifact = read_artifact(built)
    assert build_plan(artifact, plan_key(artifact, "tensorrt_rtx", "sm89", file="decoder.onnx"))
