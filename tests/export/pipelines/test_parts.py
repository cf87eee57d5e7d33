"""Parts of a pipeline: those that an engine would leave out, and a tiny autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import pfdiff
from pfdiff.engine.errors import InputError
from pfdiff.export.network import Network


def small_pipeline() -> Any:
    small = pytest.importorskip("pfdiff.tests.small.diffusers")
    return small.pipeline_of(small.FAMILIES["sd1"])


@pytest.mark.filterwarnings("ignore:.*torchvision.*")
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_pipelines_whose_parts_an_engine_would_leave_out(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    pipeline = small_pipeline()
    adapter = diffusers.T2IAdapter(channels=[8, 16], num_res_blocks=1, adapter_type="light_adapter")
    parts = {name: one for name, one in pipeline.components.items() if name != "image_encoder"} | {"adapter": adapter}
    steered = diffusers.StableDiffusionAdapterPipeline(**parts, requires_safety_checker=False)
    with pytest.raises(InputError, match=r"has the part 'adapter'.*from_pipe"):
        Network(steered)
    steered.save_pretrained(tmp_path / "steered")
    with pytest.raises(InputError, match="has the part 'adapter'"):
        Network(tmp_path / "steered")
    picture = diffusers.StableDiffusionDepth2ImgPipeline(
        **{name: getattr(pipeline, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")},
        depth_estimator=None,
        feature_extractor=None,
    )
    with pytest.warns(UserWarning, match="no mask, no edit"):
        Network(picture)
    pipeline.vae = diffusers.AsymmetricAutoencoderKL(
        down_block_out_channels=(8,), up_block_out_channels=(8,), norm_num_groups=4
    )
    with pytest.raises(
        InputError, match="its autoencoder is of class AsymmetricAutoencoderKL, expected AutoencoderKL or"
    ):
        Network(pipeline)


@pytest.mark.filterwarnings("ignore:.*torchvision.*")
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_a_tiny_autoencoder_decodes(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    pipeline = small_pipeline()
    torch.manual_seed(0)
    blocks = {"encoder_block_out_channels": (4, 4), "decoder_block_out_channels": (4, 4)}
    layers = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    pipeline.vae = diffusers.AutoencoderTiny(**blocks, **layers, latent_channels=4).eval()
    pipeline.save_pretrained(tmp_path / "tiny")
    prompt = torch.zeros(77, 8)
    for source in (pipeline, tmp_path / "tiny"):
        out = tmp_path / "tiny.engine"
        with pfdiff.build(source, 2, "ddim", backend="onnxruntime", out=out) as engine:
            latents = engine.sample(seeds=[3], nfe=2, prompt_embeds=prompt)
            images = engine.images(seeds=[3], nfe=2, prompt_embeds=prompt)
    with torch.no_grad():
        expected = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    pixels = ((expected.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1)
    assert tuple(images.shape) == (1, 16, 16, 3)
    assert (images.float() - pixels).abs().max() <= 1
