"""A latent model small enough for tests: a denoiser, decoders of two kinds, and diffusers' way of decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfdiff.kernels import eager

diffusers = pytest.importorskip("diffusers", reason="the autoencoder is diffusers'")

SHAPE, IMAGE = (4, 6, 5), (3, 12, 10)
SCALING, SHIFT = 0.3, 0.1
WORDS: dict[str, Any] = {"shape": SHAPE, "schedule": "linear:1000", "prediction": "eps", "name": "latent"}


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 0.9, 4).reshape(4, 1, 1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(self.weight * x) + 0.001 * t.to(x.dtype)[:, None, None, None]


class Upsampler(nn.Module):
    """A decoder without a config: two images' rows and columns for each latent."""

    def __init__(self, channels: int = 4, images: int = 3) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(channels, 4 * images, 1)

    def forward(self, latents: Tensor) -> Tensor:
        return torch.tanh(nn.functional.pixel_shuffle(self.conv(latents), 2))


def autoencoder(**config: Any) -> Any:
    """A small AutoencoderKL with random weights."""
    torch.manual_seed(1)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (4, 8), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 2}
    constants = {"scaling_factor": SCALING, "shift_factor": SHIFT}
    return diffusers.AutoencoderKL(**{**blocks, **sizes, **constants, "sample_size": 12, **config}).eval()


@torch.no_grad()
def decoded(vae: Any, latents: Tensor, scaling: Any = SCALING, shift: Any = SHIFT) -> Tensor:
    """As diffusers' pipelines decode."""
    return vae.decode(latents / scaling + shift).sample


def pixels_of(images: Tensor) -> Tensor:
    pixels = torch.empty((len(images), *images.shape[2:], images.shape[1]), dtype=torch.uint8)
    eager.images(pixels, images, -1.0, 1.0)
    return pixels


def assert_same_pixels(got: Tensor, wanted: Tensor) -> None:
    """At most one level apart, where rounding falls the other way."""
    difference = (got.int() - wanted.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01
