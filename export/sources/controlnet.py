"""A ControlNet in front of its U-Net as one network: the picture and its strength are conditions.

    out = unet(x, t, text, residuals = strength controlnet(x, t, text, picture))       (arXiv 2302.05543)

Both are exported as one graph, so an engine evaluates them together, and another picture or strength changes nothing
but values. The picture is float32 [3, H, W] in 0..1, as diffusers' pipelines prepare it.
"""

from __future__ import annotations

from typing import Any, final

from torch import Tensor, nn

from ...engine.contract.contract import Condition
from ...engine.errors import InputError
from ..families.family import in_dtype_of
from ..families.unet import NESTED

CLASS = "ControlNetModel"
IMAGE, STRENGTH = "control_image", "control_strength"
ALIAS = "controlnet_conditioning_scale"
DENOISER = "UNet2DConditionModel"
LATENT = ("SD3ControlNetModel", "FluxControlNetModel", "QwenImageControlNetModel")


def control_conditions(controlnet: Any, shape: tuple[int, ...], pixels: int, strength: float) -> tuple[Condition, ...]:
    """The picture and its strength, for samples of `shape` with `pixels` to a latent's side. Raises InputError."""
    scale = 2 ** (len(controlnet.config.conditioning_embedding_out_channels) - 1)
    if scale != pixels:
        raise InputError(
            f"the ControlNet makes pictures {scale} times smaller, the autoencoder {pixels} times; give the "
            "ControlNet of this model"
        )
    sides = tuple(size * pixels for size in shape[1:])
    channels = int(controlnet.config.conditioning_channels)
    return (
        Condition(IMAGE, "float32", (channels, *sides)),
        Condition(STRENGTH, "float32", default=strength, alias=ALIAS),
    )


def check_fits(controlnet: Any, denoiser: Any, class_name: str) -> None:
    """Raises InputError for another class, or another size of text."""
    check_class(type(controlnet).__name__)
    if class_name != DENOISER:
        raise InputError(f"a ControlNet stands before a {DENOISER}, this is a {class_name}; leave it out")
    for key in ("cross_attention_dim", "in_channels", "addition_embed_type"):
        wanted, got = denoiser.config.get(key), controlnet.config.get(key)
        if wanted != got:
            raise InputError(f"the ControlNet has {key} {got}, the model {wanted}; give the ControlNet of this model")


def check_class(name: str) -> None:
    """Raises InputError for a ControlNet of another class than `ControlNetModel`."""
    if name in LATENT:
        raise InputError(
            f"the ControlNet is a {name}, which takes the latents of its picture and is not supported; known is "
            f"{CLASS} of Stable Diffusion 1, 2 and XL"
        )
    if name != CLASS:
        raise InputError(f"the ControlNet is a {name}, expected one {CLASS}; give its folder alone")


@final
class ControlledUnet(nn.Module):
    """forward(x [B, C, H, W], t [B], **conditions) -> out [B, C, H, W]."""

    def __init__(self, model: nn.Module, controlnet: nn.Module) -> None:
        super().__init__()
        self.model, self.controlnet = model, controlnet

    def forward(self, x: Tensor, t: Tensor, /, **conditions: Tensor) -> Tensor:
        given: dict[str, Any] = in_dtype_of(x, conditions)
        picture, strength = given.pop(IMAGE), given.pop(STRENGTH)
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
