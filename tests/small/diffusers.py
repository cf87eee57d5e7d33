"""Tiny diffusers models with random weights, one family for each kind that is known, with their pipelines."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers")
WARNINGS = [
    # diffusers turns tensors into NumPy 2 arrays in a way that PyTorch does not know yet.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    # transformers, which the pipelines import, notes that torchvision is missing.
    pytest.mark.filterwarnings("ignore:.*torchvision.*"),
]
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}


# Tiny models; the U-Nets' middle has attention too.
def unet(**changes: Any) -> Any:
    blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    sizes = {"sample_size": 8, "block_out_channels": (8, 16), "attention_head_dim": 4}
    return diffusers.UNet2DModel(**{"layers_per_block": 1, "norm_num_groups": 4, **sizes, **blocks, **changes})


def text_unet(**changes: Any) -> Any:
    sizes = {"sample_size": 8, "block_out_channels": (8, 16), "cross_attention_dim": 8, "attention_head_dim": 4}
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    }
    return diffusers.UNet2DConditionModel(
        **{
            "in_channels": 4,
            "out_channels": 4,
            "layers_per_block": 1,
            "norm_num_groups": 4,
            **sizes,
            **blocks,
            **changes,
        }
    )


def sdxl_unet() -> Any:
    return text_unet(
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=12 + 6 * 8,
    )


HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}
SQUARE = {"sample_size": 8, "patch_size": 2, "in_channels": 4}


def dit() -> Any:
    return diffusers.DiTTransformer2DModel(**HEADS, **SQUARE, out_channels=8, num_embeds_ada_norm=10)


def pixart() -> Any:
    words = {"out_channels": 8, "cross_attention_dim": 16, "caption_channels": 12}
    return diffusers.PixArtTransformer2DModel(**HEADS, **SQUARE, **words)


def sd3() -> Any:
    text = {"joint_attention_dim": 12, "caption_projection_dim": 16, "pooled_projection_dim": 10}
    return diffusers.SD3Transformer2DModel(**HEADS, **SQUARE, **text, out_channels=4, pos_embed_max_size=8)


def flux() -> Any:
    text = {"joint_attention_dim": 12, "pooled_projection_dim": 10}
    heads = {"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6)}
    return diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, guidance_embeds=True, **heads, **text
    )


def vae() -> Any:
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    return diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4, **blocks).eval()


def random_like(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


# What each family is and how diffusers itself runs it.
@dataclass(frozen=True)
class Family:
    """The denoiser and its pipeline; inputs: what both the pipeline and the engine take.

    pipeline: without one the scheduler's loop is the reference, since the pipeline draws its noise itself.
    """

    model: Callable[[], Any]
    scheduler: Any
    pipeline: str = ""
    part: str = "unet"
    decoder: Callable[[], Any] | None = None
    inputs: dict[str, Tensor] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)  # of the pipeline alone
    words: dict[str, Any] = field(default_factory=dict)  # of Network
    sample: dict[str, Any] = field(default_factory=dict)  # of engine.sample alone


DDIM, FLOW = "DDIMScheduler", "FlowMatchEulerDiscreteScheduler"
FAMILIES = {
    "unet": Family(unet, (DDIM, {})),
    "sd1": Family(
        text_unet,
        (DDIM, {**SCALED, "steps_offset": 1, "set_alpha_to_one": False}),
        "StableDiffusionPipeline",
        decoder=vae,
        inputs={"prompt_embeds": random_like(1, 77, 8)},
        run={"guidance_scale": 1.0},
    ),
    "sdxl": Family(
        sdxl_unet,
        (
            DDIM,
            {**SCALED, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
            | {"rescale_betas_zero_snr": True},
        ),
        "StableDiffusionXLPipeline",
        inputs={
            "prompt_embeds": random_like(1, 77, 8),
            "pooled_prompt_embeds": random_like(1, 12),
            "negative_prompt_embeds": random_like(1, 77, 8) + 1,
            "negative_pooled_prompt_embeds": random_like(1, 12) - 1,
        },
        run={"guidance_scale": 3.0},
        words={"guidance": "prompt_embeds=input,pooled_prompt_embeds=input"},
        sample={"guidance": 3.0},
    ),
    "dit": Family(dit, (DDIM, {"clip_sample": False}), part="transformer", sample={"class_labels": 7}),
    "pixart": Family(
        pixart,
        (DDIM, {"clip_sample": False}),
        "PixArtAlphaPipeline",
        "transformer",
        inputs={"prompt_embeds": random_like(1, 120, 12), "prompt_attention_mask": (torch.arange(120) < 9)[None]},
        run={"guidance_scale": 1.0, "use_resolution_binning": False, "negative_prompt": None},
    ),
    "sd3": Family(
        sd3,
        (FLOW, {"shift": 3.0}),
        "StableDiffusion3Pipeline",
        "transformer",
        inputs={"prompt_embeds": random_like(1, 333, 12), "pooled_prompt_embeds": random_like(1, 10)},
        run={"guidance_scale": 1.0},
    ),
    "flux": Family(
        flux,
        (FLOW, {"shift": 3.0, "use_dynamic_shifting": True}),
        "FluxPipeline",
        "transformer",
        inputs={"prompt_embeds": random_like(1, 512, 12), "pooled_prompt_embeds": random_like(1, 10)},
        run={"guidance_scale": 2.5},
        words={"shape": (4, 8, 8)},
        sample={"guidance_scale": 2.5},
    ),
}


def scheduler_of(family: Family) -> Any:
    name, options = family.scheduler
    return getattr(diffusers, name)(**options)


def pipeline_of(family: Family) -> Any:
    """The family's pipeline without encoders."""
    torch.manual_seed(3)
    kind = getattr(diffusers, family.pipeline or "DDIMPipeline")
    model, scheduler = family.model().eval(), scheduler_of(family)
    if not family.pipeline:
        return kind(model, scheduler)
    parts = {family.part: model, "scheduler": scheduler, "vae": family.decoder and family.decoder()}
    needed = [one.name for one in inspect.signature(kind).parameters.values() if one.default is one.empty]
    unsafe = {"requires_safety_checker": False} if "safety_checker" in needed else {}
    return kind(**{name: parts.get(name) for name in needed}, **unsafe)


def controlnet_of(unet: Any) -> Any:
    """A ControlNet of the U-Net whose own layers, which start at zero, are not."""
    torch.manual_seed(7)
    controlnet = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4,)).eval()
    with torch.no_grad():
        for name, weight in controlnet.named_parameters():
            if "controlnet" in name:
                weight.normal_(std=0.3)
    return controlnet


def packed(x: torch.Tensor) -> torch.Tensor:
    """FLUX's latents, patches of 2 x 2: as its pipeline documents them."""
    return torch.nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


def unpacked(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pixel_shuffle(x.transpose(1, 2).unflatten(2, (4, 4)), 2)
