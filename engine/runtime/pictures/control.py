"""The picture that a ControlNet is shown, as the condition that its network takes.

Networks of U-Nets take the picture itself, float32 [3, H, W] in 0..1, as `control_image`. Those of Stable Diffusion 3
and FLUX take the latents of it, as `control_latents`: the picture is brought to the data's range and encoded by the
engine's image encoder, once a call, outside the captured schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch

from ...artifact import Artifact
from ...contract.condition import Condition
from ...contract.contract import Contract, DecoderContract
from ...contract.controls import CONTROL_LATENTS, control_condition, is_control_picture
from ...errors import InputError

SLACK = 1e-3  # of floats in 0..1


@final
@dataclass(frozen=True)
class Shown:
    """What an engine with a ControlNet takes as its picture.

    encoded: [C, H, W] that its image encoder takes, None without one.
    """

    condition: Condition
    encoded: tuple[int, ...] | None

    @classmethod
    def of(cls, contract: Contract, encoder: DecoderContract | None) -> Shown | None:
        """None for a network without a ControlNet."""
        condition = control_condition(contract)
        return None if condition is None else cls(condition, encoder.shape if encoder else None)

    @property
    def latents(self) -> bool:
        """Whether the network takes latents of the picture."""
        return self.condition.name == CONTROL_LATENTS

    @property
    def shape(self) -> tuple[int, ...]:
        """[C, H, W] of the picture. Raises InputError."""
        if not self.latents:
            return self.condition.shape
        if self.encoded is None:
            raise InputError(
                "control_image: this engine holds no image encoder; build it with encoders, or give control_latents= "
                f"float32 {list(self.condition.shape)}"
            )
        return self.encoded

    @property
    def expected(self) -> str:
        """What to give, in words."""
        latents = f"control_latents= float32 {list(self.condition.shape)}"
        if self.latents and self.encoded is None:
            return f"{latents}, since this engine holds no image encoder"
        channels, height, width = self.shape
        picture = f"pixels uint8 [{height}, {width}, {channels}] or floats [{channels}, {height}, {width}] in 0..1"
        return f"{picture}, or {latents}" if self.latents else picture

    def rows(self, picture: Any) -> torch.Tensor:
        """float32 [n, C, H, W] in 0..1, of pixels or floats; equal ones once. Raises InputError."""
        given = picture.detach().cpu() if isinstance(picture, torch.Tensor) else torch.from_numpy(np.array(picture))
        shape = self.shape
        rows = given[None] if given.ndim == len(shape) else given
        if given.dtype == torch.uint8 and tuple(rows.shape[1:]) == (*shape[1:], shape[0]):
            rows = rows.movedim(-1, 1)
        if tuple(rows.shape[1:]) != shape or not (rows.is_floating_point() or rows.dtype == torch.uint8):
            dtype = str(given.dtype).removeprefix("torch.")
            raise InputError(
                f"control_image: got {dtype} {list(given.shape)}, expected {self.expected}; resize the picture to "
                f"{shape[2]} x {shape[1]} pixels"
            )
        rows = rows.float() / 255 if rows.dtype == torch.uint8 else rows.float()
        if rows.numel() and not (rows.min() >= -SLACK and rows.max() <= 1 + SLACK):
            raise InputError(
                f"control_image: got floats in {float(rows.min()):.4g}..{float(rows.max()):.4g}, expected 0..1; scale "
                "them, or give pixels as uint8"
            )
        return rows[:1] if len(rows) > 1 and bool((rows == rows[:1]).all()) else rows


@final
class ControlPicture:
    """encode: latents float32 [n, *shape] of pictures [n, 3, H, W] in the data's range. shown: None without any."""

    def __init__(self, artifact: Artifact, encode: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._contract = artifact.contract
        self._encode = encode
        self.shown = Shown.of(artifact.contract, artifact.image_encoder)

    def conditions(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given`, with the picture as its condition's value: one for all samples or one for each. Raises InputError.

        Latents, and tensors of a GPU for `control_image`, are left as they are.
        """
        if self.shown is None:
            return dict(given)
        found = self._contract.by_name(given)
        name, latents = self.shown.condition.name, self.shown.latents
        picture = found.get(name)
        if picture is None:
            if latents:
                raise InputError(f"control_image is missing; give {self.shown.expected}")
            return found
        if not hasattr(picture, "shape"):
            picture = np.asarray(picture)
        if latents and not is_control_picture(self.shown.condition, picture):
            return found
        if not latents and isinstance(picture, torch.Tensor) and picture.is_cuda:
            return found
        rows = self.shown.rows(picture)
        if not latents:
            return {**found, name: rows.numpy()}
        low, high = self._contract.data_range
        made = self._encode(rows * (high - low) + low)
        return {**found, name: made if len(made) > 1 else made[0]}
