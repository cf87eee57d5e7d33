"""Masks, and networks that inpaint by themselves: equal to diffusers' own Inpaint pipelines.

Every pipeline is tiny and has random weights; it goes through `save_pretrained` and the code that users call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import pfdiff
from pfdiff.cli import main
from pfdiff.engine.artifact import read_artifact

from ...small.diffusers import FAMILIES, HEADS, WARNINGS, diffusers, text_unet, unpacked
from ...small.texts import texts_of, whole_pipeline

pytestmark = [*WARNINGS, pytest.mark.slow]

NAMES = ("sd1", "sd1-9", "sdxl", "sd3", "flux")
STEPS = 5
SCALE = 3.0


def sd3_of_16_channels() -> dict[str, Any]:
    """Its inpainting pipeline takes no other number."""
    text = {"joint_attention_dim": 12, "caption_projection_dim": 16, "pooled_projection_dim": 10}
    square = {"sample_size": 8, "patch_size": 2, "in_channels": 16, "out_channels": 16, "pos_embed_max_size": 8}
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4,), norm_num_groups=2, latent_channels=16, shift_factor=0.2, scaling_factor=0.4, **blocks
    ).eval()
    with torch.no_grad():  # its encoder draws nothing
        vae.quant_conv.weight[16:] = 0
        vae.quant_conv.bias[16:] = -40
    return {"transformer": diffusers.SD3Transformer2DModel(**HEADS, **square, **text).eval(), "vae": vae}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """(inpainting pipeline, engine) of a family, built when first asked for.

    None has text encoders, which have tests of their own. The network that inpaints by itself is built from the folder
    of its pipeline, with the autoencoder. The others start from latents.
    """
    held: dict[str, tuple[Any, Path]] = {}
    top = tmp_path_factory.mktemp("inpainting")

    def get(name: str) -> tuple[Any, Path]:
        if name not in held:
            family = FAMILIES[name.removesuffix("-9")]
            torch.manual_seed(4)
            parts = {
                "sd1-9": lambda: {"unet": text_unet(in_channels=9).eval()},
                "sdxl": lambda: {"unet": family.model().eval()},
                "sd3": sd3_of_16_channels,
            }
            kind = name.removesuffix("-9")
            made = whole_pipeline(kind, family, **dict.fromkeys(texts_of(kind)), **parts.get(name, dict)())
            inpaint = getattr(diffusers, type(made).__name__.replace("Pipeline", "InpaintPipeline"))
            safe = {"requires_safety_checker": False} if name.startswith("sd1") else {}
            pipeline = inpaint(**made.components, **safe)
            pipeline.set_progress_bar_config(disable=True)
            source, path = top / name, top / f"{name}.engine"
            if name == "sd1-9":
                pipeline.save_pretrained(source)
            else:
                source = inpaint(**{**made.components, "vae": None}, **safe)
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                words: dict[str, Any] = {"guidance": "prompt_embeds=input"} if name == "sd1-9" else family.words
                network = pfdiff.Network(source, **words)
            given: dict[str, Any] = {"solver": "ddim", "grid": "diffusers", "batch": 2, "out": path}
            pfdiff.build(network, STEPS, backend="onnxruntime", device="cpu", **given).close()
            held[name] = pipeline, path
        return held[name]

    return get


def picture_and_mask() -> tuple[Tensor, Tensor]:
    """Pixels 0..1 [1, 3, 8, 8] and a mask of random grey [8, 8], which both sides cut at one half."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, 3, 8, 8, generator=generator), torch.rand(8, 8, generator=generator)


@torch.no_grad()
def latents_of(pipeline: Any, picture: Tensor) -> Tensor:
    """As the pipeline makes them, whose autoencoder draws nothing."""
    config, mean = pipeline.vae.config, pipeline.vae.encode(2 * picture - 1).latent_dist.mode()
    return (mean - (config.shift_factor or 0.0)) * config.scaling_factor


def words_of(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the pipeline and what the engine take beside pictures and noise."""
    family = FAMILIES[name.removesuffix("-9")]
    if name == "sd1-9":
        words = {**family.inputs, "negative_prompt_embeds": family.inputs["prompt_embeds"] + 1}
        return {**words, "guidance_scale": SCALE}, {**words, "guidance": SCALE}
    # The engine has no autoencoder, which says that a latent's side is one pixel.
    sizes = {"add_time_ids": np.array([8, 8, 0, 0, 8, 8], np.float32)} if name == "sdxl" else {}
    return {**family.inputs, **family.run}, {**family.inputs, **family.sample, **sizes}


@torch.no_grad()
def theirs(name: str, pipeline: Any, strength: float, picture: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(noise, latents) of diffusers' own pipeline."""
    channels = 16 if name == "sd3" else 4
    drawn = torch.Generator().manual_seed(2)
    # The autoencoder draws first, which changes nothing here; of 9 channels at strength 1 it encodes no picture.
    if not (name == "sd1-9" and strength == 1):
        torch.randn(1, channels, 8, 8, generator=drawn)
    noise = torch.randn(1, channels, 8, 8, generator=drawn)
    found = pipeline(
        image=picture,
        mask_image=mask[None, None],
        strength=strength,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(2),
        output_type="latent",
        height=8,
        width=8,
        **words_of(name)[0],
    ).images
    return noise, unpacked(found) if name == "flux" else found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strength", [1.0, 0.6, 0.5])
def test_inpainting_is_the_pipelines(engines: Any, name: str, strength: float) -> None:
    """As diffusers counts the evaluations of the last part: 2.5 of them are 2 on betas, 3 on flows."""
    pipeline, path = engines(name)
    picture, mask = picture_and_mask()
    noise, wanted = theirs(name, pipeline, strength, picture, mask)
    image = 2 * picture - 1 if name == "sd1-9" else latents_of(pipeline, picture)
    with pfdiff.load(path, device="cpu", backend="onnxruntime") as engine:
        given = {"noise": noise, "image": image, **words_of(name)[1]}
        got = engine.sample(**given, mask=mask, strength=strength, strength_counts="whole")
        without = engine.sample(**given, mask=torch.ones(8, 8), strength=strength, strength_counts="whole")
    assert wanted.std() > 0.05
    torch.testing.assert_close(got, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-4)
    black = (mask < 0.5).expand_as(got)
    if name != "sd1-9":  # which answers for it itself
        assert torch.equal(got[black], image[black])
    assert not torch.allclose(got[~black], without[~black], rtol=1e-3, atol=1e-3)


def test_a_network_that_inpaints_shows_what_it_takes(engines: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = engines("sd1-9")[1]
    contract = read_artifact(path).contract
    shapes = {one.name: one.shape for one in contract.conditions}
    assert contract.shape == (4, 8, 8)
    assert (shapes["inpaint_mask"], shapes["masked_image_latents"]) == ((1, 8, 8), (4, 8, 8))
    with pfdiff.load(path, device="cpu", backend="onnxruntime") as engine:
        given: dict[str, Any] = {"seeds": [1], **words_of("sd1-9")[1]}
        with pytest.raises(pfdiff.InputError, match="this network inpaints; give image= and mask="):
            engine.sample(**given)
        picture, mask = picture_and_mask()
        with pytest.raises(pfdiff.InputError, match=r"got latents \[4, 8, 8\], expected pixels \[3, 8, 8\]"):
            engine.sample(**given, image=torch.zeros(4, 8, 8), mask=mask)
        pixels = (picture[0] * 255).to(torch.uint8).movedim(0, -1)
        image = pixels.float().movedim(-1, 0)[None] / 255 * 2 - 1
        latents = engine._pictures.encoded(image * (mask < 0.5))
        by_hand: dict[str, Any] = {"inpaint_mask": (mask >= 0.5).float()[None], "masked_image_latents": latents}
        assert torch.equal(engine.sample(**given, **by_hand), engine.sample(**given, image=pixels, mask=mask))


def test_on_the_command_line(engines: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = engines("sd1-9")[1]
    picture, mask = picture_and_mask()
    pixels = (picture[0] * 255).to(torch.uint8).movedim(0, -1).numpy()
    Image.fromarray(pixels).save(tmp_path / "day.png")
    Image.fromarray(np.where(mask.numpy() < 0.5, 0, 255).astype(np.uint8)).save(tmp_path / "sky.png")
    Image.fromarray(np.zeros((4, 8), np.uint8)).save(tmp_path / "small.png")
    words = words_of("sd1-9")[1]
    start = ["sample", str(path), "--nfe", "5", "--guidance", "3", "--seeds", "4"]
    for one in ("prompt_embeds", "negative_prompt_embeds"):
        np.save(tmp_path / f"{one}.npy", words[one].numpy())
        start += [f"--{one}", str(tmp_path / f"{one}.npy")]
    start += ["--device", "cpu", "--backend", "onnxruntime", "--image", str(tmp_path / "day.png")]
    out = tmp_path / "x.npy"
    assert main([*start, "--mask", str(tmp_path / "sky.png"), "-o", str(out)]) == 0
    with pfdiff.load(path, device="cpu", backend="onnxruntime") as engine:
        expected = engine.sample(**words, seeds=[4], image=pixels, mask=mask)
    np.testing.assert_array_equal(np.load(out), expected.numpy())
    capsys.readouterr()
    assert main([*start, "--mask", str(tmp_path / "small.png"), "-o", str(tmp_path / "y.npy")]) == 2
    said = capsys.readouterr().err
    assert "mask: got uint8 [4, 8], expected [8, 8], or one for each sample, [1, 8, 8]; resize it to 8 x 8 p" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "y.npy").exists()
