"""ControlNets of Stable Diffusion 3 and FLUX in front of their transformers: they see the latents of their picture.

    out = transformer(x, t, text, residuals = strength controlnet(x, t, text, picture))       (arXiv 2302.05543)

As diffusers' StableDiffusion3ControlNetPipeline and FluxControlNetPipeline have it: some of Stable Diffusion 3 take the
latents without the autoencoder's shift and no pooled prompt, those of 3.5 take no text and the transformer's places;
those of FLUX take patches of 2 x 2 latents, or with a hint block of their own the picture itself.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from ....engine.contract.condition import Condition
from ....engine.contract.controls import CONTROL_IMAGE, CONTROL_LATENTS
from ....engine.errors import InputError
from ..family import in_dtype_of
from ..flux import GUIDANCE, AdaptedFlux
from .patched import from_patches, to_patches

STRENGTH = "control_strength"
HINTED_PIXELS = 8  # of a latent's side, where the ControlNet itself makes the picture smaller


# Stable Diffusion 3.
def sd3_conditions(controlnet: Any, shape: tuple[int, ...], pixels: int) -> tuple[Condition, ...]:
    """The picture's latents, for samples of `shape`. Raises InputError for a ControlNet that inpaints."""
    if extra := controlnet.config.get("extra_conditioning_channels"):
        raise InputError(
            f"the ControlNet takes {extra} further channels, a mask for inpainting, which is not supported; give one "
            "without (extra_conditioning_channels 0)"
        )
    return (Condition(CONTROL_LATENTS, "float32", shape, alias=CONTROL_IMAGE),)


@final
class ControlledSD3(nn.Module):
    """forward(x [B, C, H, W], t [B], **conditions) -> out [B, C, H, W].

    shift: what the autoencoder's shift is in latents, which is added where a ControlNet wants them without.
    """

    def __init__(self, model: nn.Module, controlnet: Any, shift: float) -> None:
        super().__init__()
        self.model, self.controlnet = model, controlnet
        if controlnet.pos_embed is None:  # of 3.5, which shares them
            controlnet.pos_embed = model.pos_embed
        self.plain = bool(controlnet.config.force_zeros_for_pooled_projection)
        self.shift = shift if self.plain else 0.0
        self.reads = controlnet.config.joint_attention_dim is not None

    def forward(self, x: Tensor, t: Tensor, /, **conditions: Tensor) -> Tensor:
        given = in_dtype_of(x, conditions)
        picture, strength = given.pop(CONTROL_LATENTS) + self.shift, given.pop(STRENGTH)
        pooled = given["pooled_projections"]
        (residuals,) = self.controlnet(
            hidden_states=x,
            controlnet_cond=picture,
            conditioning_scale=strength.reshape(-1, 1, 1),
            encoder_hidden_states=given["encoder_hidden_states"] if self.reads else None,
            pooled_projections=torch.zeros_like(pooled) if self.plain else pooled,
            timestep=t,
            return_dict=False,
        )
        return self.model(
            hidden_states=x, timestep=t, block_controlnet_hidden_states=residuals, **given, return_dict=False
        )[0]


# FLUX.
def flux_conditions(controlnet: Any, shape: tuple[int, ...], pixels: int) -> tuple[Condition, ...]:
    """The picture's latents, or the picture, for samples of `shape`; a guidance where only the ControlNet takes it.

    Raises InputError for a ControlNet of several modes.
    """
    config = controlnet.config
    if config.get("num_mode") is not None:
        raise InputError(
            f"the ControlNet is a union of {config.num_mode} modes, which is not supported; give one of a single mode"
        )
    guidance = (Condition(GUIDANCE, "float32", default=3.5, alias="guidance_scale"),) * bool(config.guidance_embeds)
    if controlnet.input_hint_block is None:
        return (Condition(CONTROL_LATENTS, "float32", shape, alias=CONTROL_IMAGE), *guidance)
    if pixels != HINTED_PIXELS:
        raise InputError(
            f"the ControlNet makes pictures {HINTED_PIXELS} times smaller, the autoencoder {pixels} times; give the "
            "ControlNet of this model"
        )
    sides = tuple(size * pixels for size in shape[1:])
    return (Condition(CONTROL_IMAGE, "float32", (3, *sides)), *guidance)


@final
class ControlledFlux(nn.Module):
    """forward(x [B, C, H, W], t [B], **conditions) -> out [B, C, H, W]."""

    def __init__(self, flux: AdaptedFlux, controlnet: Any) -> None:
        super().__init__()
        self.flux, self.controlnet = flux, controlnet
        held: tuple[Any, ...] = (controlnet, flux.model)
        self.guided = tuple(bool(one.config.guidance_embeds) for one in held)
        self.hinted = controlnet.input_hint_block is not None

    def forward(self, x: Tensor, t: Tensor, /, **conditions: Tensor) -> Tensor:
        given = in_dtype_of(x, conditions)
        picture = 2 * given.pop(CONTROL_IMAGE) - 1 if self.hinted else to_patches(given.pop(CONTROL_LATENTS))
        strength, guidance = given.pop(STRENGTH), given.pop(GUIDANCE, None)
        patches = to_patches(x)
        given |= {"hidden_states": patches, "timestep": t, "return_dict": False}
        given |= {"img_ids": self.flux.img_ids, "txt_ids": self.flux.txt_ids}
        scales = [guidance if guided else None for guided in self.guided]
        double, single = self.controlnet(
            controlnet_cond=picture, conditioning_scale=strength.reshape(-1, 1, 1), guidance=scales[0], **given
        )
        out = self.flux.model(
            controlnet_block_samples=double,
            controlnet_single_block_samples=single,
            controlnet_blocks_repeat=self.hinted,
            guidance=scales[1],
            **given,
        )[0]
        return from_patches(out, x.shape[2], x.shape[3])
