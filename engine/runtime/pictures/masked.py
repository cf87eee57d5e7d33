"""A mask: what is kept of a known picture, and with which factors it stands in the place of what a sampler made.

After the update that follows evaluation n, where the mask is 0,

    s_0 <- alpha(t_{n+1}) x_0 + sigma(t_{n+1}) eps        before the next evaluation, at t_{n+1}
    s_0 <- x_0                                            after the last

with the noise eps that the sample itself starts from, as diffusers' inpainting pipelines have it. So the network sees
the picture as it would be on the sample's own way. RePaint (Lugmayr et al., arXiv 2201.09865) draws eps anew each time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from ...compiler.program import Program
from ...compiler.schedule import parse_schedule
from ...contract.contract import Contract
from ...contract.pictures import check_mask
from ...errors import InputError

HALF = 128  # of 255: where a pixel of a mask counts as white


@final
@dataclass(frozen=True, eq=False)
class Masked:
    """Of m samples: picture x_0 float32 [m, elements], mask uint8 [m, elements], 0 where x_0 is kept; on one device."""

    picture: torch.Tensor
    mask: torch.Tensor

    def part(self, which: slice) -> Masked:
        """Those of some of the samples."""
        return Masked(self.picture[which], self.mask[which])


def known_factors(program: Program, *, mixed: bool = False) -> NDArray[np.float64]:
    """(a_n, b_n) float64 [N, 2]: what is kept after evaluation n is a_n x_0 + b_n z.

    z is what stands in the place of the noise. That is eps itself, or, if sampling starts from a picture (`mixed`), the
    state x_t / c of `PictureStart`, of which eps = (c z - alpha_t x_0) / sigma_t.
    """
    schedule = parse_schedule(program.schedule)
    alphas, sigmas = (np.array([float(one(t)) for t in program.times]) for one in (schedule.alpha, schedule.sigma))
    a, b = np.append(alphas[1:], 1.0), np.append(sigmas[1:], 0.0)
    if mixed:
        a = a - b * alphas[0] / sigmas[0]
        b = b * float(program.table[0, 0]) / sigmas[0]
    return np.stack([a, b], axis=1)


def mask_of(mask: Any, shown: tuple[int, ...], contract: Contract, count: int) -> torch.Tensor:
    """uint8 [n or 1, elements] of ones and zeros on the host, from a mask of a picture or of samples.

    shown: the picture's shape, [C, H, W]; samples are of contract.shape. What is at least one half is drawn anew.
    A picture's mask is brought to the samples' size as diffusers does, by the nearest element. Raises InputError.
    """
    try:
        given = mask.detach().cpu() if isinstance(mask, torch.Tensor) else torch.from_numpy(np.array(mask))
    except (TypeError, ValueError):
        raise InputError(f"mask of type {type(mask).__name__}, expected an array [H, W] of ones and zeros") from None
    size = check_mask(given, shown, contract, count)
    white = _white(given)
    rows = white[None] if tuple(white.shape) == size else white
    if len(contract.shape) == 3:
        small = torch.nn.functional.interpolate(rows[:, None].float(), size=contract.shape[1:])
        rows = small.expand(-1, contract.shape[0], -1, -1)
    return rows.reshape(len(rows), math.prod(contract.shape)).to(torch.uint8).contiguous()


def _white(given: torch.Tensor) -> torch.Tensor:
    """Where a mask is at least one half of its range: 0..255 of uint8, unless nothing is above 1; else 0..1."""
    if given.dtype == torch.bool:
        return given
    if given.is_floating_point():
        return given >= 0.5
    high = int(given.max()) if given.numel() else 0
    return given >= (HALF if high > 1 else 1)
