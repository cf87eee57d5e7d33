"""What a mask keeps of a known picture, as the update on a device reads it.

    s_0 <- a_n x_0 + b_n eps    where the mask is 0; elsewhere s_0 stays what the update made of it

x_0 is the known picture, eps what stands in the place of the noise that sampling starts from. Only s_0, which the
network sees, is replaced: all that an update computes it computes element by element, so what other states hold where
the mask is 0 never reaches an element where it is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch


@final
@dataclass(frozen=True, eq=False)
class Kept:
    """Contiguous tensors on one device: picture x_0 and eps float32 [n], mask uint8 [n], factors (a, b) [rows, 2]."""

    picture: torch.Tensor
    eps: torch.Tensor
    mask: torch.Tensor
    factors: torch.Tensor
