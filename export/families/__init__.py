"""diffusers' denoisers as networks of ours: forward(x [B, *shape], t [B], conditions...) -> prediction.

One family, one file; each defines the names of `family.Family`. Conditions bear the names of forward's parameters.
"""

from __future__ import annotations

from . import dit, flux, pixart, sd3, unet
from .family import Family

FAMILIES: dict[str, Family] = {
    "UNet2DModel": unet,
    "UNet2DConditionModel": unet,
    "DiTTransformer2DModel": dit,
    "PixArtTransformer2DModel": pixart,
    "SD3Transformer2DModel": sd3,
    "FluxTransformer2DModel": flux,
}
# Transformer2DModel, the class of older files, by its norm_type.
LEGACY = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}
