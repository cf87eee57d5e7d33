"""Networks that inpaint by themselves: they see the mask and the picture without what it covers, as further channels.

    model([x, mask, masked_image_latents] along the channels, t, ..)        2 C + 1 channels in, C out

The mask is 1 where the picture is drawn anew. diffusers' StableDiffusionInpaintPipeline and its XL form.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from ....engine.contract.condition import INPAINT_MASK, MASKED_IMAGE, Condition
from ..family import Config


def inpaints(config: Config) -> bool:
    """Whether a U-Net's config is that of such a network."""
    made = config.get("out_channels")
    return bool(made) and int(config["in_channels"]) == 2 * int(made) + 1


def conditions(config: Config, shape: tuple[int, ...]) -> tuple[Condition, ...]:
    """Mask and masked picture, for samples of `shape`; none for other networks."""
    if not inpaints(config):
        return ()
    return Condition(INPAINT_MASK, "float32", (1, *shape[1:])), Condition(MASKED_IMAGE, "float32", shape)


@final
class Inpainting(nn.Module):
    """forward(x [B, C, H, W], t [B], **conditions) -> out [B, C, H, W], of a network that takes 2 C + 1 channels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, /, **conditions: Tensor) -> Tensor:
        mask, masked = (conditions.pop(name).to(x.dtype) for name in (INPAINT_MASK, MASKED_IMAGE))
        return self.model(torch.cat((x, mask, masked), 1), t, **conditions)
