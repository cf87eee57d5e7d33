"""diffusers' autoencoders of several classes: decoders and image encoders of an engine, equal to their own methods."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pfdiff

from ..small.diffusers import FAMILIES, WARNINGS, diffusers, pipeline_of
from ..small.latent import WORDS, Denoiser, assert_same_pixels, pixels_of

pytestmark = [*WARNINGS, pytest.mark.slow]

SHAPE = (4, 6, 5)


def tiny() -> Any:
    sizes = {"encoder_block_out_channels": (4, 4), "decoder_block_out_channels": (4, 4)}
    return diffusers.AutoencoderTiny(**sizes, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), scaling_factor=0.5)


def quantized() -> Any:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (4, 8), "latent_channels": 4, "vq_embed_dim": 4, "num_vq_embeddings": 16}
    return diffusers.VQModel(**blocks, **sizes, norm_num_groups=2, scaling_factor=0.5)


def deep() -> Any:
    sizes = {"encoder_block_out_channels": (8, 16), "decoder_block_out_channels": (8, 16), "latent_channels": 4}
    layers = {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
    kinds = {"encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock", "downsample_block_type": "Conv"}
    norms = {"decoder_norm_types": "rms_norm", "decoder_act_fns": "silu", "upsample_block_type": "interpolate"}
    return diffusers.AutoencoderDC(**sizes, **layers, **kinds, **norms, scaling_factor=0.5)


@pytest.mark.parametrize("made", [tiny, quantized, deep])
@torch.no_grad()
def test_they_decode_and_encode_as_diffusers_does(made: Callable[[], Any], tmp_path: Path) -> None:
    torch.manual_seed(2)
    autoencoder = made().eval()
    autoencoder.save_pretrained(tmp_path / "vae")
    network = pfdiff.Network(Denoiser(), **WORDS, decoder=str(tmp_path / "vae"))
    with pfdiff.build(network, 2, solver="ddim", device="cpu", backend="onnxruntime", out=tmp_path / "e") as engine:
        latents = engine.sample(seeds=range(2))
        pixels = engine.images(seeds=range(2))
        assert_same_pixels(pixels, pixels_of(autoencoder.decode(latents / 0.5).sample))
        picture = torch.rand(1, *engine.decoder.image, generator=torch.Generator().manual_seed(1))  # type: ignore[union-attr]
        found = engine._pictures.encoded(picture)
    encoded = autoencoder.encode(picture)
    wanted = 0.5 * (encoded.latent if made is deep else encoded.latents)
    torch.testing.assert_close(found, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-4)


def test_another_class_is_refused(tmp_path: Path) -> None:
    pipeline = pipeline_of(FAMILIES["sd1"])
    pipeline.save_pretrained(tmp_path / "sd")
    config = tmp_path / "sd" / "vae" / "config.json"
    config.write_text(config.read_text().replace("AutoencoderKL", "AutoencoderOobleck"))
    with pytest.raises(
        pfdiff.InputError, match=r"autoencoder is of class AutoencoderOobleck, expected AutoencoderKL or .*--deco"
    ):
        pfdiff.Network(tmp_path / "sd")
    with pytest.raises(pfdiff.InputError, match="the decoder is a UNet2DConditionModel, expected AutoencoderKL"):
        pfdiff.Network(Denoiser(), **WORDS, decoder=tmp_path / "sd" / "unet")
