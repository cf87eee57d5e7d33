"""The last op: float32 samples [b, C, H, W] to uint8 pictures [b, H, W, C].

    level = (x - low) * (255 / (high - low)), clamped to 0..255, rounded to the nearest integer, halves to even

Every operation is rounded to float32 on its own, the factor once on the host. NaN becomes 0.
Bytes per element: 4 read, 1 written. Runs once per sample.
"""

from __future__ import annotations

import torch

from . import eager
from .launch import Kernel, constexpr, runs_triton, tl

# 128 threads x 16 elements: one 16-byte store of pixels each. For one channel the reads are 16 bytes as well; for
# three, the sixteen neighbouring bytes come from three planes and the cache lines are shared by the threads beside.
BLOCK = 2048
WARPS = 4


def images_kernel(pixels, x, low, factor, area, CHANNELS: constexpr, BLOCK: constexpr):
    """pixels [b, area, CHANNELS] uint8, x [b, CHANNELS, area] float32; program = image * blocks + block."""
    count = area * CHANNELS  # per image, below 2^31
    blocks = (count + (BLOCK - 1)) // BLOCK
    image = tl.program_id(0) // blocks
    offset = (tl.program_id(0) - image * blocks) * BLOCK + tl.arange(0, BLOCK)  # position in pixels, channel fastest
    inside = offset < count
    base = image.to(tl.int64) * count

    source = (offset % CHANNELS) * area + offset // CHANNELS
    level = (tl.load(x + base + source, mask=inside, other=0.0) - low) * factor
    level = tl.where(level > 0.0, level, 0.0)
    level = tl.where(level < 255.0, level, 255.0)
    level = (level + 8388608.0) - 8388608.0  # 2^23: float32 itself rounds to integers there, halves to even
    tl.store(pixels + base + offset, level.to(tl.int32).to(tl.uint8), mask=inside)


KERNEL = Kernel(images_kernel, warps=WARPS)


def images(pixels: torch.Tensor, x: torch.Tensor, low: float, high: float) -> None:
    """Write x as pictures.

    pixels  uint8 [b, H, W, C], contiguous; overwritten
    x       float32 [b, C, H, W], contiguous, on the same device; low and high become 0 and 255
    Raises ValueError when shapes, dtypes, devices or the range do not fit. Equal bit for bit to `eager.images`.
    """
    if x.dim() != 4 or x.dtype != torch.float32 or not x.is_contiguous():
        raise ValueError(f"x must be contiguous float32 [b, C, H, W], got {x.dtype} {tuple(x.shape)}")
    samples, channels, height, width = x.shape
    expected = (samples, height, width, channels)
    if pixels.shape != expected or pixels.dtype != torch.uint8 or not pixels.is_contiguous():
        raise ValueError(f"pixels must be contiguous uint8 {expected}, got {pixels.dtype} {tuple(pixels.shape)}")
    if pixels.device != x.device:
        raise ValueError(f"pixels are on {pixels.device} and x on {x.device}; put them on one device")
    if not low < high:
        raise ValueError(f"the data range must rise, got {low} to {high}")
    count = channels * height * width
    if count + BLOCK >= 2**31:
        raise ValueError(f"one image has {count} numbers; at most {2**31 - BLOCK - 1} are supported")
    if x.numel() == 0:
        return
    if not runs_triton(x):
        eager.images(pixels, x, low, high)
        return
    KERNEL.launch(
        samples * -(-count // BLOCK),
        (pixels, x, float(low), 255.0 / (high - low), height * width),  # an int would compile another kernel
        {"CHANNELS": channels, "BLOCK": BLOCK},
    )
