"""Samples to pixels: by the formula in float64, and the bits of the engine's own conversion."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pfdiff.kernels import eager
from pfdiff.quality.pictures.pixels import pixels_of


@pytest.mark.parametrize("data_range", [(-1.0, 1.0), (0.0, 1.0), (-2.5, 7.0)])
def test_pixels_are_those_of_the_engine(data_range: tuple[float, float]) -> None:
    low, high = data_range
    samples = np.random.default_rng(0).uniform(low - 0.2, high + 0.2, (50, 3, 7, 5)).astype(np.float32)
    samples[0, 0, 0] = [np.nan, np.inf, -np.inf, low, high]
    pixels = pixels_of(samples, data_range)

    # By the formula, one level of rounding either way.
    level = np.clip((samples[1:].astype(np.float64) - low) / (high - low) * 255, 0, 255)
    assert np.abs(pixels[1:].astype(float) - level.transpose(0, 2, 3, 1)).max() <= 0.501
    assert pixels[0, 0, :, 0].tolist() == [0, 255, 0, 0, 255]

    # Bit for bit what `Engine.images` gives.
    theirs = torch.empty(pixels.shape, dtype=torch.uint8)
    eager.images(theirs, torch.from_numpy(samples), low, high)
    np.testing.assert_array_equal(pixels, theirs.numpy())


def test_halves_go_to_even() -> None:
    samples = ((np.arange(4) + 0.5) / 255).astype(np.float32).reshape(1, 1, 1, 4)
    assert pixels_of(samples, (0.0, 1.0)).reshape(-1).tolist() == [0, 2, 2, 4]
