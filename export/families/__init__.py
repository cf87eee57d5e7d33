"""diffusers' denoisers as networks of ours: forward(x [B, *shape], t [B], conditions...) -> prediction.

A new family is a file here that defines the names of `family.Family`, and a line of FAMILIES below for its class.
Conditions bear the names of forward's parameters.
"""

from __future__ import annotations

from . import (
    aura_flow,
    chroma,
    dit,
    flux,
    flux2,
    hunyuan_dit,
    lumina2,
    pixart,
    qwen_image,
    sana,
    sd3,
    unet,
    unet1d,
    wan,
    z_image,
)
from .family import Family

FAMILIES: dict[str, Family] = {
    "UNet2DModel": unet,
    "UNet2DConditionModel": unet,
    "DiTTransformer2DModel": dit,
    "PixArtTransformer2DModel": pixart,
    "SD3Transformer2DModel": sd3,
    "FluxTransformer2DModel": flux,
    "Flux2Transformer2DModel": flux2,
    "ZImageTransformer2DModel": z_image,
    "QwenImageTransformer2DModel": qwen_image,
    "SanaTransformer2DModel": sana,
    "ChromaTransformer2DModel": chroma,
    "AuraFlowTransformer2DModel": aura_flow,
    "HunyuanDiT2DModel": hunyuan_dit,
    "Lumina2Transformer2DModel": lumina2,
    "WanTransformer3DModel": wan,
    "UNet1DModel": unet1d,
}
# Transformer2DModel, the class of older files, by its norm_type.
LEGACY = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}
