"""Latents in patches of 2 x 2, as the transformers of FLUX, Qwen-Image and others take them."""

from __future__ import annotations

import torch
from torch import Tensor


def to_patches(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H/2 W/2, 4 C], the rows of a patch within each channel."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return x.flatten(3).flatten(1, 2)


def from_patches(x: Tensor, height: int, width: int) -> Tensor:
    """The inverse: [B, H/2 W/2, 4 C] -> [B, C, H, W]."""
    x = x.reshape(len(x), height // 2, width // 2, -1, 2, 2)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(len(x), -1, height, width)


def to_last_patches(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H/2 W/2, 4 C], the channels within each place of a patch."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 3, 5, 1)
    return x.flatten(3).flatten(1, 2)


def from_last_patches(x: Tensor, height: int, width: int) -> Tensor:
    """The inverse: [B, H/2 W/2, 4 C] -> [B, C, H, W]."""
    x = x.reshape(len(x), height // 2, width // 2, 2, 2, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, height, width)


def places(rows: int, columns: int) -> Tensor:
    """Row and column of each patch, int64 [rows columns, 2]."""
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
