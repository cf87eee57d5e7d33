"""A ControlNet in front of its denoiser as one network: the picture and its strength are conditions.

    out = unet(x, t, text, residuals = strength controlnet(x, t, text, picture))       (arXiv 2302.05543)

Both are exported as one graph, so an engine evaluates them together, and another picture or strength changes nothing
but values. The picture is float32 [3, H, W] in 0..1, as diffusers' pipelines prepare it; transformers take its latents
(families/parts/latent_controls.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from ...engine.contract.contract import Condition
from ...engine.contract.controls import CONTROL_IMAGE
from ...engine.errors import InputError
from ..families.family import in_dtype_of
from ..families.parts.latent_controls import (
    STRENGTH,
    ControlledFlux,
    ControlledSD3,
    flux_conditions,
    sd3_conditions,
)
from ..families.unet import NESTED

ALIAS = "controlnet_conditioning_scale"


@final
@dataclass(frozen=True)
class Control:
    """The ControlNets of a family. models: in words. same: keys of the config that are the denoiser's too.

    conditions: of (controlnet, a sample's shape, pixels of a latent's side), without the strength. module: of (the
    denoiser as its family calls it, controlnet, the autoencoder's shift in latents).
    """

    class_name: str
    models: str
    same: tuple[str, ...]
    conditions: Callable[[Any, tuple[int, ...], int], tuple[Condition, ...]]
    module: Callable[[Any, Any, float], nn.Module]


def _unet_conditions(controlnet: Any, shape: tuple[int, ...], pixels: int) -> tuple[Condition, ...]:
    """The picture, for samples of `shape` with `pixels` to a latent's side. Raises InputError."""
    if controlnet.config.get("global_pool_conditions"):  # as that of shuffled pictures
        raise InputError(
            "the ControlNet pools what it adds (global_pool_conditions), and diffusers adds that to the half with the "
            "prompt alone, which is not supported; give another ControlNet"
        )
    scale = 2 ** (len(controlnet.config.conditioning_embedding_out_channels) - 1)
    if scale != pixels:
        raise InputError(
            f"the ControlNet makes pictures {scale} times smaller, the autoencoder {pixels} times; give the "
            "ControlNet of this model"
        )
    sides = tuple(size * pixels for size in shape[1:])
    return (Condition(CONTROL_IMAGE, "float32", (int(controlnet.config.conditioning_channels), *sides)),)


TRANSFORMER = ("in_channels", "num_attention_heads", "attention_head_dim", "pooled_projection_dim")


def control_of(denoiser: str) -> Control:
    """Of a denoiser's class. Raises InputError where it has no ControlNet here."""
    if denoiser not in CONTROLS:
        raise InputError(f"a ControlNet stands before a {' or '.join(CONTROLS)}, this is a {denoiser}; leave it out")
    return CONTROLS[denoiser]


def check_class(name: str, denoiser: str) -> None:
    """Raises InputError for a ControlNet of another class than that of the denoiser."""
    wanted = control_of(denoiser)
    if name == wanted.class_name:
        return
    if "Multi" in name:
        raise InputError("its pipeline has several ControlNets, which are not supported; leave all but one out")
    other = next((one for one in CONTROLS.values() if one.class_name == name), None)
    of = f" of {other.models}" if other else ", which is not supported"
    raise InputError(
        f"the ControlNet is a {name}{of}, expected a {wanted.class_name} of {wanted.models}; give the ControlNet of "
        "this model"
    )


def controlnet_path(controlnet: object) -> str | None:
    """`controlnet=` of `Network` as a text. Raises InputError for several, and for an object."""
    if controlnet is None or isinstance(controlnet, (str, Path)):
        return None if controlnet is None else str(controlnet)
    if isinstance(controlnet, (list, tuple)):
        raise InputError(f"controlnet: got {len(controlnet)} in a list, expected one; an engine holds at most one")
    raise InputError(
        f"controlnet: got {type(controlnet).__name__}, expected a folder that save_pretrained wrote; "
        "or give the ControlNet's own pipeline as the network"
    )


def check_fits(controlnet: Any, denoiser: Any, class_name: str) -> None:
    """Raises InputError for another class, or another size."""
    check_class(type(controlnet).__name__, class_name)
    for key in control_of(class_name).same:
        wanted, got = denoiser.config.get(key), controlnet.config.get(key)
        if wanted != got:
            raise InputError(f"the ControlNet has {key} {got}, the model {wanted}; give the ControlNet of this model")
    text = controlnet.config.get("joint_attention_dim")  # of Stable Diffusion 3.5 none
    if text not in (None, denoiser.config.get("joint_attention_dim")):
        wanted = denoiser.config.get("joint_attention_dim")
        raise InputError(
            f"the ControlNet has joint_attention_dim {text}, the model {wanted}; give the ControlNet of this model"
        )


def control_conditions(
    controlnet: Any, class_name: str, shape: tuple[int, ...], pixels: int, strength: float
) -> tuple[Condition, ...]:
    """The picture and its strength, for samples of `shape` with `pixels` to a latent's side. Raises InputError."""
    shown = control_of(class_name).conditions(controlnet, shape, pixels)
    return (*shown, Condition(STRENGTH, "float32", default=strength, alias=ALIAS))


@final
class ControlledUnet(nn.Module):
    """forward(x [B, C, H, W], t [B], **conditions) -> out [B, C, H, W]."""

    def __init__(self, model: nn.Module, controlnet: nn.Module) -> None:
        super().__init__()
        self.model, self.controlnet = model, controlnet

    def forward(self, x: Tensor, t: Tensor, /, **conditions: Tensor) -> Tensor:
        given: dict[str, Any] = in_dtype_of(x, conditions)
        picture, strength = given.pop(CONTROL_IMAGE), given.pop(STRENGTH)
        nested = {name: given.pop(name) for name in NESTED if name in given}
        if nested:
            given["added_cond_kwargs"] = nested
        down, middle = self.controlnet(
            sample=x,
            timestep=t,
            controlnet_cond=picture,
            conditioning_scale=strength.reshape(-1, 1, 1, 1),
            return_dict=False,
            **given,
        )
        return self.model(
            sample=x,
            timestep=t,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
            **given,
        )[0]


# By the class of the denoiser.
CONTROLS = {
    "UNet2DConditionModel": Control(
        "ControlNetModel",
        "Stable Diffusion 1, 2 and XL",
        ("cross_attention_dim", "in_channels", "addition_embed_type"),
        _unet_conditions,
        lambda adapted, controlnet, _: ControlledUnet(adapted.model, controlnet),
    ),
    "SD3Transformer2DModel": Control(
        "SD3ControlNetModel",
        "Stable Diffusion 3",
        TRANSFORMER,
        sd3_conditions,
        lambda adapted, controlnet, shift: ControlledSD3(adapted.model, controlnet, shift),
    ),
    "FluxTransformer2DModel": Control(
        "FluxControlNetModel",
        "FLUX.1",
        TRANSFORMER,
        flux_conditions,
        lambda adapted, controlnet, _: ControlledFlux(adapted, controlnet),
    ),
}
