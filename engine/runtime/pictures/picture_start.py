"""Samples that start from a picture: x_t = alpha_t x_0 + sigma_t eps at a point on the way, then the rest of the way.

The program walks the last part, `strength`, of the way that the engine's own program walks, with as many evaluations.
Its states begin at multiples of one noise, y_0 = c noise; so x_t / c in the place of the noise starts them at x_t.

A mask keeps part of the picture (masked.py). At strength 1 it is a mask on the engine's own program: sampling starts
from noise alone, and the picture counts only where it is kept, as in diffusers. A network that inpaints by itself takes
mask and masked picture as conditions in place of that (`INPAINTING`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch

from ...artifact import IMAGE_ENCODER, Artifact
from ...backends.choose import Beside
from ...compiler.part import last_part
from ...compiler.program import Program
from ...compiler.schedule import parse_schedule
from ...contract.condition import INPAINT_MASK, MASKED_IMAGE
from ...contract.contract import Contract
from ...contract.pictures import check_picture, inpaints, is_pixels
from ...errors import InputError
from ..asked import Asked
from ..later import LaterNetwork
from ..loop import Tables, make_tables
from .masked import Masked, mask_of

LARGEST_CACHE = 16
COUNTS = ("part", "whole")


def check_strength(strength: float, count: str) -> None:
    """Raises InputError for what is no strength, or another word for how it counts."""
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 < strength <= 1:
        raise InputError(f"strength={strength!r}, expected a number above 0 and at most 1, such as 0.6")
    if count not in COUNTS:
        raise InputError(f"strength_counts={count!r}, expected one of {', '.join(COUNTS)}")


def program_of(program: Program, strength: float, count: str) -> Program:
    """The program of the last `strength` of the way of `program`. Raises InputError."""
    check_strength(strength, count)
    return last_part(program, float(strength), whole=count == "whole")


@final
@dataclass(frozen=True, eq=False)
class Start:
    """What a call with a picture starts from.

    tables, noise: of the part of the way, and what stands in the noise's place [n, elements]; None for the engine's own
    program from noise. masked: what is kept. conditions: of a network that inpaints.
    """

    tables: Tables | None
    noise: torch.Tensor | None
    masked: Masked | None
    conditions: Mapping[str, Any]


@final
class PictureStart:
    """Programs for the rest of the way, and the image encoder of a latent model, loaded when a picture comes."""

    def __init__(self, artifact: Artifact, beside: Beside) -> None:
        self._artifact = artifact
        self._beside = beside
        self._tables: dict[tuple[Program, float, str], Tables] = {}
        # Latents float32 [n, *shape] of pixels in the data's range.
        self.encoded = LaterNetwork(artifact, beside, "the image encoder", IMAGE_ENCODER, artifact.image_encoder)

    def tables(self, program: Program, strength: float, count: str) -> Tables:
        """The tables of the last `strength` of `program`'s way. Raises InputError."""
        check_strength(strength, count)
        key = (program, float(strength), count)  # not its NFE: several faces of an engine share these
        if key not in self._tables:
            if len(self._tables) >= LARGEST_CACHE:
                self._tables.pop(next(iter(self._tables)))
            self._tables[key] = make_tables(program_of(program, strength, count), self._artifact.contract, mixed=True)
        return self._tables[key]

    def start(self, asked: Asked, program: Program, count: int, draw: Callable[[], torch.Tensor]) -> Start:
        """What a call of `count` samples starts from, by what it asks for; draw: its noise [n, elements].

        Raises InputError.
        """
        image = self._picture(asked.image, count)
        x_0, masked, conditions = self._samples(image), None, {}
        if asked.mask is not None:
            mask = mask_of(asked.mask, self.shown, self._artifact.contract, count)
            if inpaints(self._artifact.contract):
                conditions = self._inpainted(image, asked.mask, mask, count)
            else:
                shape = (count, x_0.shape[1])
                masked = Masked(x_0.expand(shape), mask.to(x_0.device).expand(shape))
        if asked.mask is not None and asked.way == 1:
            return Start(None, None, masked, conditions)
        tables = self.tables(program, asked.way, asked.strength_counts)
        return Start(tables, self.noise(x_0, draw(), tables), masked, conditions)

    def _inpainted(self, image: torch.Tensor, mask: Any, small: torch.Tensor, count: int) -> dict[str, Any]:
        """The conditions of a network that inpaints: 1 where is drawn anew, and the picture with nothing there."""
        if tuple(image.shape[1:]) != self.shown:
            raise InputError(
                f"image: got latents {list(image.shape[1:])}, expected pixels {list(self.shown)}: this network takes "
                "the picture without what the mask covers, which is encoded anew"
            )
        whole = mask_of(mask, self.shown, replace(self._artifact.contract, shape=self.shown), count)
        kept = image * (whole.reshape(-1, *self.shown) == 0).to(image.device)
        latents = self.encoded(kept) if self._artifact.image_encoder else kept
        anew = small.reshape(-1, *self._artifact.contract.shape)[:, :1].float()
        return {INPAINT_MASK: anew.expand(count, -1, -1, -1), MASKED_IMAGE: latents.expand(count, -1, -1, -1)}

    def noise(self, x_0: torch.Tensor, noise: torch.Tensor, tables: Tables) -> torch.Tensor:
        """What stands in the noise's place [n, elements], for the picture's sample x_0 [n or 1, elements]."""
        x_0 = x_0.to(noise)
        program = tables.program
        schedule = parse_schedule(program.schedule)
        start = float(program.times[0])
        alpha, sigma, factor = float(schedule.alpha(start)), float(schedule.sigma(start)), float(program.table[0, 0])
        return (alpha / factor) * x_0 + (sigma / factor) * noise

    @property
    def shown(self) -> tuple[int, ...]:
        """The shape of a picture: what the image encoder takes, or a sample's own."""
        return self._artifact.pictures.shape

    def _picture(self, image: Any, count: int) -> torch.Tensor:
        """Floats [n or 1, ..]: pixels in the data's range, or samples. Raises InputError."""
        contract, shown = self._artifact.contract, self.shown
        given = image.detach() if isinstance(image, torch.Tensor) else torch.from_numpy(np.array(image))
        check_picture(given, self._artifact.pictures, count)
        if is_pixels(given, shown):
            given = _from_pixels(given, contract)
        return given[None] if tuple(given.shape) in (shown, contract.shape) else given

    def _samples(self, rows: torch.Tensor) -> torch.Tensor:
        """x_0 float32 [n or 1, elements] on the engine's device, of what `_picture` gives."""
        shape = self._artifact.contract.shape
        x_0 = rows if tuple(rows.shape[1:]) == shape else self.encoded(rows)
        return x_0.to(self._beside.device, torch.float32).reshape(len(rows), math.prod(shape))

    def close(self) -> None:
        """Free the image encoder."""
        self.encoded.close()


def _from_pixels(given: torch.Tensor, contract: Contract) -> torch.Tensor:
    """uint8 [.., H, W, C] as floats [.., C, H, W] in the data's range."""
    low, high = contract.data_range
    return given.movedim(-1, -3).float() / 255 * (high - low) + low
