"""Each op of this folder in plain torch: the fallback without Triton, the tests' reference, the bench's baseline.

Any device. `step` and `images` compute in the dtype of their float input, float64 included, in the kernels' own order
of operations: in float32 they are equal to the kernels bit for bit. `noise` computes in float64 and rounds once; the
draws that `step` adds are computed in float32, with the bits of the kernel.
"""

from __future__ import annotations

import math

import torch

from .kept import Kept
from .table import WITH_NOISE, Update

# Philox-4x32-10: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011), and Random123.
PHILOX_ROUNDS = 10
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF
# ln(1 + f) = f - f^2 / 2 + f^3 P(f): the polynomial of Cephes' logf (S. Moshier).
LOGARITHM = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1),
    *(2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)


def step(
    states: torch.Tensor,
    y_in: torch.Tensor | None,
    out: torch.Tensor,
    table: torch.Tensor,
    row: int,
    update: Update,
    seeds: torch.Tensor | None = None,
    factors: torch.Tensor | None = None,
    *,
    xi: torch.Tensor | None = None,
    kept: Kept | None = None,
) -> None:
    """Twin of `step.step`; float64 states and table compute in float64."""
    buffers = len(states)
    numbers = table[row].to(states.dtype)
    p, q, clip, c_in = numbers[:4]
    w, W = numbers[4 : 4 + buffers], numbers[4 + buffers :].view(buffers, buffers)
    read = [i for i in range(buffers) if update.reads >> i & 1]

    z = out.reshape(-1).to(states.dtype)
    if update.clip:
        x_0 = q * z if 0 not in read else p * states[0] + q * z
        z = torch.clamp(x_0, -clip, clip)
    if update.noise and xi is None:
        assert seeds is not None, "this update draws noise: give seeds and factors"
        xi = torch.empty(len(seeds), states.shape[1] // len(seeds), dtype=states.dtype, device=states.device)
        noise(xi, seeds, row + 1)
    after: dict[int, torch.Tensor] = {}
    for j in range(buffers):
        if update.writes >> j & 1 or (update.separate and j == 0):
            after[j] = w[j] * z
            for i in read:
                after[j] = after[j] + W[j, i] * states[i]
            if update.noise >> j & 1 and xi is not None and factors is not None:
                after[j] = after[j] + factors[row, j].to(states.dtype) * xi.view(-1)
            if update.keeps and j == 0:
                assert kept is not None, "this update keeps a known picture: give kept"
                after[j] = torch.where(kept.mask.view(-1) != 0, after[j], known(kept, row, update.keeps))
    for j, s_j in after.items():
        if update.writes >> j & 1:
            states[j] = s_j
    if y_in is not None:
        y_in.view(-1).copy_(c_in * after[0])  # the one change of dtype: the network's own


def known(kept: Kept, row: int, keeps: int) -> torch.Tensor:
    """a x_0 + b eps [n] of one row, or a x_0."""
    a, b = kept.factors[row]
    picture = a * kept.picture.view(-1)
    return picture + b * kept.eps.view(-1) if keeps == WITH_NOISE else picture


def images(pixels: torch.Tensor, x: torch.Tensor, low: float, high: float) -> None:
    """Twin of `images.images`."""
    level = (x - low) * (255.0 / (high - low))
    level = torch.where(level > 0, level, torch.zeros_like(level)).clamp(max=255.0)  # NaN becomes 0
    pixels.copy_(level.round().to(torch.uint8).permute(0, 2, 3, 1))  # torch rounds halves to even


def noise(z: torch.Tensor, seeds: torch.Tensor, draw: int = 0) -> None:
    """Twin of `noise.noise`, of any draw: float64 Box-Muller, rounded to z's dtype once; in float32 from draw 1 on.

    One sample at a time bounds the memory.
    """
    element = torch.arange(z[0].numel(), dtype=torch.int64, device=z.device)
    for sample, seed in zip(z, seeds, strict=True):
        counter = (element & WORD, element >> 32, torch.full_like(element, draw), torch.zeros_like(element))
        r_0, r_1, _, _ = philox(counter, (seed & WORD, seed >> 32 & WORD))
        if draw:
            sample.copy_(normal32(r_0, r_1).view_as(sample))
            continue
        u_1, u_2 = (r_0.double() + 0.5) * 2.0**-32, (r_1.double() + 0.5) * 2.0**-32  # exact
        sample.copy_((torch.sqrt(-2 * torch.log(u_1)) * torch.cos(2 * math.pi * u_2)).view_as(sample))


def normal32(r_0: torch.Tensor, r_1: torch.Tensor) -> torch.Tensor:
    """Box-Muller of two Philox words, int64 each, in float32: the operations of `noise.normal` in their order."""
    # ln u_1 = k ln 2 + ln(1 + f); near u_1 = 1 from 1 - u_1.
    upper = r_0 >= 0x80000000
    x = torch.where(upper, r_0 ^ WORD, r_0).float() + 0.5
    bits = x.view(torch.int32)
    exponent = (bits - 0x3F3504F3) >> 23
    mantissa = (bits - (exponent << 23)).view(torch.float32)
    rest = x * 2.3283064365386963e-10
    halved = rest > torch.tensor(0.29289321881345254, device=r_0.device)
    f = torch.where(upper, torch.where(halved, 1.0 - 2.0 * rest, -rest), mantissa - 1.0)
    k = torch.where(upper, torch.where(halved, -1, 0), exponent - 32).float()
    y = torch.full_like(f, LOGARITHM[0])
    for coefficient in LOGARITHM[1:]:
        y = y * f + coefficient
    square = f * f
    y = y * f * square - 2.12194440e-4 * k - 0.5 * square
    # torch 2.13 takes MKL's float32 root, one in six of which is a unit off; rounded from float64 each is the nearest.
    radius = torch.sqrt((-2.0 * (0.693359375 * k + (f + y))).double()).float()

    # cos(2 pi u_2): the nearest quarter turn, then |angle| <= pi / 4.
    quarter = (r_1 + 0x20000000 & WORD) >> 30
    remainder = (r_1 - (quarter << 30) & WORD).to(torch.int32)  # the upper half wraps to negative numbers
    angle = (remainder.float() + 0.5) * 1.4629180792671596e-9
    a = angle * angle
    sine = ((-1.9515295891e-4 * a + 8.3321608736e-3) * a - 1.6666654611e-1) * a * angle + angle
    cosine = ((2.443315711809948e-5 * a - 1.388731625493765e-3) * a + 4.166664568298827e-2) * a * a - 0.5 * a + 1.0
    wave = torch.where((quarter & 1) == 1, sine, cosine)
    return radius * wave * torch.where((quarter + 1 & 2) == 2, -1.0, 1.0)  # quarters 1 and 2: -sin, -cos


def philox(counter: tuple[torch.Tensor, ...], key: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Philox-4x32-10 of four counter words and two key words, each int64 in [0, 2^32); returns four such words."""
    c_0, c_1, c_2, c_3 = counter
    k_0, k_1 = key
    for _ in range(PHILOX_ROUNDS):
        product_0, product_1 = (
            PHILOX_MULTIPLIERS[0] * c_0,
            PHILOX_MULTIPLIERS[1] * c_2,
        )  # int64 wraps: the bits are right
        c_0, c_1 = (product_1 >> 32 & WORD) ^ c_1 ^ k_0, product_1 & WORD
        c_2, c_3 = (product_0 >> 32 & WORD) ^ c_3 ^ k_1, product_0 & WORD
        k_0, k_1 = k_0 + PHILOX_WEYL[0] & WORD, k_1 + PHILOX_WEYL[1] & WORD
    return c_0, c_1, c_2, c_3
