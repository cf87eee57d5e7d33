"""Standard normal noise, one 64-bit seed per sample, the same for a seed whatever the batch and on every device.

Element e of the sample with seed s, by Philox-4x32-10 and Box-Muller:
    r_0, r_1, ..  = Philox(key = (s mod 2^32, s div 2^32), counter = (e mod 2^32, e div 2^32, draw, 0))
    u_i = (r_{i-1} + 1/2) / 2^32          z = sqrt(-2 ln u_1) cos(2 pi u_2)
Draw 0 is what sampling starts from; `step` makes draw n + 1 after evaluation n of a stochastic program.

The kernel computes in float32, where u_1 near 1 would lose everything: there ln u_1 = log1p(-(1 - u_1)) with 1 - u_1
taken from the integer. The angle is reduced to an eighth of a turn in integers, exactly. Logarithm, sine and cosine
are the polynomials of Cephes' logf, sinf and cosf (S. Moshier), with multiply and add rounded separately, so every GPU
and the interpreter give the same bits, a few units in the last place from the float64 twin.
Seeds are read from device memory: new seeds need no recapture. Bytes per element: 4 written, nothing read but the seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import eager
from .launch import Kernel, constexpr, runs_triton, tl

# 128 threads x 4 elements: one 16-byte store each. The kernel is bound by about 150 integer and float operations per
# element, not by memory, and four independent elements per thread hide their latency within 40 registers.
BLOCK = 512
WARPS = 4


def normal(seed, element, draw, BLOCK: constexpr):
    """Draw `draw` of a uint64 seed, one or [BLOCK], at the elements [BLOCK] int64: float32 [BLOCK]; draw is uint32."""
    # Philox-4x32-10.
    k_0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k_1 = (seed >> 32).to(tl.uint32)
    c_0 = (element & 0xFFFFFFFF).to(tl.uint32)
    c_1 = (element >> 32).to(tl.uint32)
    c_2 = tl.full((BLOCK,), 0, tl.uint32) + draw
    c_3 = tl.full((BLOCK,), 0, tl.uint32)
    multiplier_0 = tl.full((BLOCK,), 0xD2511F53, tl.uint32)
    multiplier_1 = tl.full((BLOCK,), 0xCD9E8D57, tl.uint32)
    for _ in tl.static_range(10):
        high_0 = tl.umulhi(multiplier_0, c_0)
        high_1 = tl.umulhi(multiplier_1, c_2)
        low_0 = tl.mul(multiplier_0, c_0, sanitize_overflow=False)
        low_1 = tl.mul(multiplier_1, c_2, sanitize_overflow=False)
        c_0 = high_1 ^ c_1 ^ k_0
        c_1 = low_1
        c_2 = high_0 ^ c_3 ^ k_1
        c_3 = low_0
        k_0 = tl.add(k_0, 0x9E3779B9, sanitize_overflow=False)
        k_1 = tl.add(k_1, 0xBB67AE85, sanitize_overflow=False)

    # ln u_1 = k ln 2 + ln(1 + f), f in [sqrt(1/2) - 1, sqrt(2) - 1].
    upper = c_0 >= 0x80000000
    x = (
        tl.where(upper, c_0 ^ 0xFFFFFFFF, c_0).to(tl.float32) + 0.5
    )  # 2^32 times 1 - u_1 or u_1, whichever is the smaller
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    mantissa = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
    rest = x * 2.3283064365386963e-10  # 1 - u_1
    halved = rest > 0.29289321881345254
    f = tl.where(upper, tl.where(halved, 1.0 - 2.0 * rest, -rest), mantissa - 1.0)
    k = tl.where(upper, tl.where(halved, -1, 0), exponent - 32).to(tl.float32)
    y = 7.0376836292e-2 * f - 1.1514610310e-1
    y = y * f + 1.1676998740e-1
    y = y * f - 1.2420140846e-1
    y = y * f + 1.4249322787e-1
    y = y * f - 1.6668057665e-1
    y = y * f + 2.0000714765e-1
    y = y * f - 2.4999993993e-1
    y = y * f + 3.3333331174e-1
    square = f * f
    y = y * f * square - 2.12194440e-4 * k - 0.5 * square
    radius = tl.sqrt_rn(-2.0 * (0.693359375 * k + (f + y)))

    # cos(2 pi u_2): the nearest quarter turn, then |angle| <= pi / 4.
    quarter = tl.add(c_1, 0x20000000, sanitize_overflow=False) >> 30
    remainder = tl.sub(c_1, quarter << 30, sanitize_overflow=False).to(tl.int32, bitcast=True)
    angle = (remainder.to(tl.float32) + 0.5) * 1.4629180792671596e-9
    a = angle * angle
    sine = ((-1.9515295891e-4 * a + 8.3321608736e-3) * a - 1.6666654611e-1) * a * angle + angle
    cosine = ((2.443315711809948e-5 * a - 1.388731625493765e-3) * a + 4.166664568298827e-2) * a * a - 0.5 * a + 1.0
    wave = tl.where((quarter & 1) == 1, sine, cosine)
    sign = tl.where(((quarter + 1) & 2) == 2, -1.0, 1.0)  # quarters 1 and 2: -sin, -cos
    return radius * wave * sign


def noise_kernel(z, seeds, elements, BLOCK: constexpr):
    """z [samples, elements] float32, seeds [samples] int64; program = sample * blocks + block."""
    count = tl.cast(elements, tl.int64)
    blocks = (count + (BLOCK - 1)) // BLOCK
    program = tl.program_id(0).to(tl.int64)
    sample = program // blocks
    element = (program - sample * blocks) * BLOCK + tl.arange(0, BLOCK)

    seed = tl.load(seeds + sample, cache_modifier=".ca").to(tl.uint64, bitcast=True)
    numbers = normal(seed, element, tl.full((), 0, tl.uint32), BLOCK)
    tl.store(z + sample * count + element, numbers, mask=element < count)


KERNEL = Kernel(noise_kernel, warps=WARPS, helpers=(normal,))


def noise(z: torch.Tensor, seeds: torch.Tensor) -> None:
    """Fill z with the noise that the seeds mean.

    z      float32 [samples, ..], contiguous; overwritten
    seeds  int64 [samples] on the same device, a seed of 2^63 or more as its two's complement (`seed_tensor`)
    Raises ValueError when shapes, dtypes or devices do not fit. Reads nothing back to the host.
    """
    if z.dtype != torch.float32 or z.dim() < 1 or not z.is_contiguous():
        raise ValueError(f"z must be contiguous float32 [samples, ..], got {z.dtype} {tuple(z.shape)}")
    if seeds.dtype != torch.int64 or seeds.shape != z.shape[:1] or not seeds.is_contiguous():
        raise ValueError(f"seeds must be contiguous int64 [{len(z)}], got {seeds.dtype} {tuple(seeds.shape)}")
    if seeds.device != z.device:
        raise ValueError(f"z is on {z.device} and seeds on {seeds.device}; put them on one device")
    if z.numel() == 0:
        return
    if not runs_triton(z):
        eager.noise(z, seeds)
        return
    elements = z.numel() // len(z)
    KERNEL.launch(len(z) * -(-elements // BLOCK), (z, seeds, elements), {"BLOCK": BLOCK})


def seed_tensor(seeds: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """Seeds as the int64 tensor that `noise` takes; ValueError for a seed outside 0 .. 2^64 - 1."""
    wrong = [seed for seed in seeds if not 0 <= seed < 2**64]
    if wrong:
        raise ValueError(f"seed {wrong[0]} is outside 0 .. 2^64 - 1")
    return torch.tensor([seed - 2**64 if seed >= 2**63 else seed for seed in seeds], dtype=torch.int64, device=device)
