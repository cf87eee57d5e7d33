"""Inception-v3 of 2015-12-05, the network of FID, from the TorchScript file that StyleGAN2-ADA, EDM and others publish.

The distance itself is in metrics.py. The file is not shipped; it takes uint8 [n, 3, H, W] and resizes by itself. Of its
layers the pooled output [n, 2048] is FID's, and mixed_6/conv [n, 192, 17, 17] gives sFID's maps (Nash et al., arXiv
2103.03841). To have both from one pass the layers are walked here; the walk is compared with the file's own answer
before it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ...engine.errors import InputError, first_line

SIZE = 299
SPATIAL_LAYER = "mixed_6"
TOLERANCE = 1e-4  # of the walk to the file's own answer, relative


def run_inception(path: Path, device: torch.device) -> Callable[[NDArray[np.uint8]], tuple[Tensor, Tensor]]:
    """pixels uint8 [n, H, W, 1|3] -> (features [n, 2048], maps [n, 192, 17, 17]). Raises InputError."""
    expected = "the TorchScript file inception-2015-12-05.pt"
    try:
        network: Any = torch.jit.load(path, map_location=device).eval()
    except RuntimeError as error:
        raise InputError(f"features 'inception:{path}': {first_line(error)}; expected {expected}") from error

    @torch.inference_mode()
    def run(pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        return _walk(network, _three_channels(pixels, device))

    # The walk against the file.
    try:
        probe = torch.arange(3 * 32 * 32, device=device).remainder(251).to(torch.uint8).view(1, 3, 32, 32)
        with torch.inference_mode():
            walked, own = _walk(network, probe)[0], network(probe, return_features=True)
        agrees = bool((walked - own).norm() <= TOLERANCE * own.norm())
    except (RuntimeError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"features 'inception:{path}': {first_line(error)}; expected {expected}") from error
    if not agrees:
        raise InputError(f"features 'inception:{path}': its layers do not add up to its answer; expected {expected}")
    return run


def _three_channels(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    if pixels.shape[3] not in (1, 3):
        raise InputError(f"features 'inception' take pictures of 1 or 3 channels, got {pixels.shape[3]}")
    x = torch.from_numpy(pixels).to(device).movedim(3, 1)
    return x.expand(-1, 3, -1, -1)


def _walk(network: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = _resized(x)
    maps: Tensor | None = None
    for name, layer in network.layers.named_children():
        if name == SPATIAL_LAYER:
            maps = layer.conv(y)
        y = layer(y)
    if maps is None:
        raise KeyError(f"no layer {SPATIAL_LAYER}")
    return y.reshape(len(x), -1), maps


def _resized(x: Tensor) -> Tensor:
    """x uint8 [n, 3, H, W] as float32 [n, 3, 299, 299] in [-1, 1), sampled as TensorFlow 1 did, from corner 0."""
    height, width = x.shape[2:]
    theta = torch.eye(2, 3, device=x.device)
    theta[0, 2] = 1 / width - 1 / SIZE
    theta[1, 2] = 1 / height - 1 / SIZE
    grid = functional.affine_grid(theta.expand(len(x), -1, -1), [len(x), 3, SIZE, SIZE], align_corners=False)
    resized = functional.grid_sample(x.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (resized - 128) / 128
