"""ControlNets of Stable Diffusion 3 and FLUX, which take the latents of their picture, against diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pfdiff
from pfdiff.engine.errors import InputError

from ...small.bare import run_bare
from ...small.diffusers import FAMILIES, WARNINGS, controlnet_of, diffusers, pipeline_of, text_unet, vae
from ...small.sampled import sampled
from ...small.texts import still_vae

pytestmark = [
    *WARNINGS,
    # diffusers' FluxControlNetModel imports its own deprecated class.
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
]

STEPS = 3
TEXT = {"joint_attention_dim": 12, "pooled_projection_dim": 10}
KINDS = {"sd3": "StableDiffusion3ControlNetPipeline", "flux": "FluxControlNetPipeline"}


def with_own_layers(controlnet: Any) -> Any:
    """Its own layers start at zero; here they are random."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, weight in controlnet.named_parameters():
            if any(word in name for word in ("controlnet", "pos_embed_input", "hint")):
                weight.normal_(std=0.3)
    return controlnet.eval()


def deeper_sd3() -> Any:
    config = dict(FAMILIES["sd3"].model().config) | {"num_layers": 2}
    return diffusers.SD3Transformer2DModel.from_config(config)


def of_sd3(**changes: Any) -> Any:
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "pos_embed_max_size": 8}
    heads = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16}
    return with_own_layers(diffusers.SD3ControlNetModel(**{**sizes, **heads, **TEXT, **changes}))


def of_sd35() -> Any:
    """Without text and places of its own, with the pooled prompt and the autoencoder's shift."""
    words = {"joint_attention_dim": None, "use_pos_embed": False, "force_zeros_for_pooled_projection": False}
    return of_sd3(**words)


def of_flux(**changes: Any) -> Any:
    heads = {"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6)}
    depth = {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "guidance_embeds": True}
    return with_own_layers(diffusers.FluxControlNetModel(**{**heads, **depth, **TEXT, **changes}))


def hinted() -> Any:
    """It makes the picture smaller by itself; its blocks are repeated in the transformer's."""
    return of_flux(conditioning_embedding_channels=4, patch_size=2, num_single_layers=0)


def pipeline(name: str, controlnet: Any, *, deep: bool = False) -> Any:
    """The family's pipeline with a ControlNet, without text encoders. deep: latents of 8 x 8 pixels."""
    autoencoder = still_vae(name)
    if deep:
        blocks = {"down_block_types": 4 * ("DownEncoderBlock2D",), "up_block_types": 4 * ("UpDecoderBlock2D",)}
        sizes = {"block_out_channels": (4, 4, 4, 4), "norm_num_groups": 2, "latent_channels": 4}
        autoencoder = diffusers.AutoencoderKL(**sizes, **blocks, shift_factor=0.2, scaling_factor=0.4).eval()
    family = FAMILIES[name]
    if name == "sd3":  # what a ControlNet adds to the last block counts nowhere
        family = replace(family, model=deeper_sd3)
    own = {**pipeline_of(family).components, "vae": autoencoder, "controlnet": controlnet}
    made = getattr(diffusers, KINDS[name])(**own)
    made.set_progress_bar_config(disable=True)
    return made


def picture(side: int = 8) -> Tensor:
    """Pixels float32 [3, side, side] in 0..1, whole numbers of 255ths."""
    drawn = torch.randint(0, 256, (3, side, side), generator=torch.Generator().manual_seed(1))
    return drawn.float() / 255


def packed(name: str, noise: Tensor) -> Tensor:
    if name != "flux":
        return noise
    return diffusers.FluxControlNetPipeline._pack_latents(noise, *noise.shape)


@torch.no_grad()
def theirs(name: str, pipe: Any, noise: Tensor, shown: Tensor, strength: float) -> Tensor:
    """Latents [1, 4, 8, 8] of the pipeline, which takes tensors in -1..1."""
    family = FAMILIES[name]
    side = shown.shape[-1]
    out = pipe(
        control_image=2 * shown[None] - 1,
        controlnet_conditioning_scale=strength,
        height=side,
        width=side,
        num_inference_steps=STEPS,
        latents=packed(name, noise),
        output_type="latent",
        **family.inputs,
        **family.run,
    ).images
    if name != "flux":
        return out
    return diffusers.FluxControlNetPipeline._unpack_latents(out, side, side, pipe.vae_scale_factor)


def given(name: str) -> dict[str, Any]:
    family = FAMILIES[name]
    scale = {"guidance_scale": torch.tensor(2.5)} if name == "flux" else {}
    return {**family.inputs, **scale}


def assert_same(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-4)


@torch.no_grad()
def latents_of(pipe: Any, shown: Tensor) -> Tensor:
    """As img2img pipelines scale them."""
    config = pipe.vae.config
    z = pipe.vae.encode(2 * shown[None] - 1).latent_dist.mode()
    return (z - config.shift_factor) * config.scaling_factor


@pytest.mark.parametrize(("name", "made"), [("sd3", of_sd3), ("sd3", of_sd35), ("flux", of_flux), ("flux", hinted)])
def test_a_controlnet_of_latents(name: str, made: Callable[[], Any]) -> None:
    deep = made is hinted
    pipe = pipeline(name, made(), deep=deep)
    shown = picture(64 if deep else 8)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    network = pfdiff.Network(pipe, **FAMILIES[name].words)
    seen = {"control_image": shown} if deep else {"control_latents": latents_of(pipe, shown)}
    found = []
    for strength in (1.0, 0.5):
        control: dict[str, Any] = {**seen, "control_strength": torch.tensor(strength)}
        found.append(sampled(network, noise, STEPS, **given(name), **control))
        assert_same(found[-1], theirs(name, pipe, noise, shown, strength))
    assert (found[0] - found[1]).abs().max() > 1e-3


# Engines.
ENGINE: dict[str, Any] = {"solver": "ddim", "grid": "diffusers", "backend": "onnxruntime", "device": "cpu"}


IN_A_FRESH_PROCESS = """
with pfdiff.load("edges.engine", device="cpu", backend="onnxruntime") as engine:
    numpy.save("fresh.npy", engine.sample(**numpy.load("given.npz"), control_strength=0.5).numpy())
"""


@pytest.mark.bare
@pytest.mark.slow
def test_an_engine_encodes_the_picture(tmp_path: Path) -> None:
    name, pipe = "sd3", pipeline("sd3", of_sd3())
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    shown = picture()
    pixels = np.asarray(255 * shown, np.float32).round().astype(np.uint8).transpose(1, 2, 0)
    network = pfdiff.Network(pipe, **FAMILIES[name].words, name="edges")
    with pfdiff.build(network, STEPS, **ENGINE, out=tmp_path / "edges.engine") as engine:
        made_of = [
            engine.sample(noise=noise, **given(name), control_image=one, control_strength=0.5)
            for one in (pixels, shown, np.stack([pixels, pixels]))
        ]
        with pytest.raises(InputError, match=r"control_image is missing; give pixels uint8 \[8, 8, 3\] or floats"):
            engine.sample(noise=noise, **given(name))
        with pytest.raises(InputError, match=r"got floats in 1\.\.255, expected 0\.\.1; scale them, or give pixels"):
            engine.sample(noise=noise, **given(name), control_image=255 * shown)
        with pytest.raises(InputError, match=r"got uint8 \[16, 16, 3\], .*; resize the picture to 8 x 8 pixels"):
            engine.sample(noise=noise, **given(name), control_image=np.zeros((16, 16, 3), np.uint8))
        np.savez(tmp_path / "given.npz", noise=noise.numpy(), control_image=pixels, **given(name))
        run_bare(IN_A_FRESH_PROCESS, tmp_path)
        latents = {"control_latents": latents_of(pipe, shown), "control_strength": 0.5}
        same = engine.sample(noise=noise, **given(name), **latents)
    assert_same(made_of[0][:1], theirs(name, pipe, noise[:1], shown, 0.5))
    fresh = torch.from_numpy(np.load(tmp_path / "fresh.npy"))
    for one in (*made_of[1:], same, fresh):
        torch.testing.assert_close(one, made_of[0], atol=1e-5, rtol=1e-5)


def test_without_encoders_a_network_takes_latents() -> None:
    network = pfdiff.Network(pipeline("sd3", of_sd3()), encoders=False)
    assert network.encoders is None
    shown = {one.name: one for one in network.contract.conditions}["control_latents"]
    assert (shown.shape, shown.alias) == ((4, 8, 8), "control_image")


# What does not fit.
@pytest.mark.parametrize(
    ("name", "made", "message"),
    [
        (
            "sd3",
            of_flux,
            r"is a FluxControlNetModel of FLUX\.1, expected a SD3ControlNetModel of Stable D",
        ),
        (
            "flux",
            of_sd3,
            "is a SD3ControlNetModel of Stable Diffusion 3, expected a FluxControlNetModel",
        ),
        (
            "sd3",
            lambda: controlnet_of(text_unet()),
            "is a ControlNetModel of Stable Diffusion 1, 2 and XL, expected",
        ),
        (
            "sd3",
            lambda: of_sd3(joint_attention_dim=20),
            "the ControlNet has joint_attention_dim 20, the model 12",
        ),
        (
            "sd3",
            lambda: of_sd3(extra_conditioning_channels=1),
            "takes 1 further channels, a mask for inpainting",
        ),
        (
            "flux",
            lambda: of_flux(num_mode=4),
            "is a union of 4 modes, which is not supported",
        ),
        ("flux", hinted, "makes pictures 8 times smaller, the autoencoder 1 times"),
    ],
)
def test_a_controlnet_of_another_kind_is_refused(
    tmp_path: Path, name: str, made: Callable[[], Any], message: str
) -> None:
    made().save_pretrained(tmp_path / "edges")
    source = pipeline_of(FAMILIES[name])
    source.register_modules(vae=vae())
    with pytest.raises(InputError, match=message) as error:
        pfdiff.Network(source, **FAMILIES[name].words, controlnet=tmp_path / "edges")
    assert "\n" not in str(error.value)


def test_several_controlnets_are_refused() -> None:
    several = pipeline("sd3", diffusers.models.controlnets.controlnet_sd3.SD3MultiControlNetModel([of_sd3(), of_sd3()]))
    with pytest.raises(InputError, match="its pipeline has several ControlNets, which are not supported; leave all"):
        pfdiff.Network(several)
