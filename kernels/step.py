"""The fused update of one evaluation, in place: every live state is read once and written once.

    z    = out                                      or, with clip, clamp(p s_0 + q out, -clip, clip)
    s_j <- w_j z + sum_i W_ji s_i + V_j xi          all j at once, i in rising order
    s_0 <- a x_0 + b eps                            with a mask, where it keeps a known picture x_0
    y_in = c_in' s_0                                in the network's dtype, when the network has a buffer of its own

States are the rows of one float32 tensor. The coefficients come from a device table (`table.coefficients`), so a
changed table needs no recapture; which states are touched (`table.updates`) is compiled in.
Bytes per element, the floor and what the kernel moves: 4 for each state read, 4 for each state written, the width of
`out`, and the width of y_in when separate. xi is made in registers from the samples' seeds and costs none; a given xi
costs 4. A mask costs 1, x_0 4, and eps 4 but for the last update, which needs none. PFDiff in float32: out and anchor
read, springboard and anchor written, 16.
"""

from __future__ import annotations

from typing import Any

import torch

from . import eager
from .kept import Kept
from .launch import Kernel, constexpr, runs_triton, tl
from .noise import normal
from .table import WITH_NOISE, Update, row_length

# 128 threads x 8 elements. Eight is one 16-byte access of a 2-byte `out` and two of a float32 state.
#
# A limit of 128 registers, which binds no kernel for aligned data, keeps ptxas from saving registers on its own. Left
# alone it holds PFDiff's update at 32 to 40 on sm_90, asks for half of a state only when the other half has been used,
# and for some masks spills 8 bytes to get there. With a limit every state-sized load is asked for before the first is
# used (a test reads the SASS), in 45 to 56 registers: at least 9 programs, 1152 threads x 48 bytes = 54 KiB in flight
# on an SM. A memory of 4.8 TB/s, half of it reads, with 800 ns of latency needs 15 KiB.
#
# With a 2-byte `out` Triton keeps 8 neighbours in a thread, and a float32 store of 4 exchanges them first: 4 KiB of
# shared memory and two barriers a program for each written state. That is 8 bytes an element through a memory of 128
# bytes a clock, less than a tenth of the time that its 12 bytes take in DRAM, and runs beside other programs' loads.
# Prediction: above 90 % of a copy on states of 64 MiB and more. Reasons, not measurements: no GPU has confirmed them.
#
# With noise from seeds 168, which are three programs on an SM. 128 are enough for up to 4 states, but 5 states, or 3
# and a mask, spill up to 80 bytes with them (sm_90). Philox and Box-Muller are about 150 operations an element, which
# should take longer there than the bytes, so less has to be in flight. Six states and more: 255, two programs.
BLOCK = 1024
WARPS = 4
REGISTERS = 128
REGISTERS_WITH_NOISE = 168
REGISTERS_OF_MANY = 255
MANY = 6
MAX_BUFFERS = 8  # all that a program may have, engine/compiler/program.py


def step_kernel(
    states,
    y_in,
    out,
    table,
    row,
    elements,
    BUFFERS: constexpr,
    READS: constexpr,
    WRITES: constexpr,
    CLIP: constexpr,
    SEPARATE: constexpr,
    BLOCK: constexpr,
    seeds=None,
    factors=None,
    size=None,
    NOISE: constexpr = 0,  # pyright: ignore[reportArgumentType]
    xi=None,
    picture=None,
    eps=None,
    mask=None,
    kept=None,
    KEEPS: constexpr = 0,  # pyright: ignore[reportArgumentType]
):
    """states [BUFFERS, elements] float32, y_in and out [elements]; `.ca` marks the loads of coefficients.

    With NOISE, a mask of states: seeds [samples] int64, factors [rows, BUFFERS] float32, size of one sample; or in
    place of seeds and size xi [elements] float32. With KEEPS: picture and, if it is 2, eps [elements] float32, mask
    [elements] uint8, kept [rows, 2] float32.

    The ignores: a constant's default is a number, and pyright does not see that the unrolled loops fill the tuples.
    """
    stride = tl.cast(elements, tl.int64)
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < stride
    numbers = table + tl.cast(row, tl.int64) * (4 + BUFFERS + BUFFERS * BUFFERS)

    # Read.
    c_in = tl.load(numbers + 3, cache_modifier=".ca") if SEPARATE else tl.full((), 1.0, tl.float32)
    if out.dtype.element_ty == tl.bfloat16:  # a bfloat16 is the upper half of a float32: exact, also before sm_80
        bits = tl.load(out + offsets, mask=inside, other=0.0).to(tl.uint16, bitcast=True)
        z = (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        z = tl.load(out + offsets, mask=inside, other=0.0).to(tl.float32)
    before = ()
    for i in tl.static_range(BUFFERS):
        if (READS >> i) & 1:
            before += (tl.load(states + i * stride + offsets, mask=inside, other=0.0),)
        else:
            before += (0.0,)
    anew = True
    known = 0.0
    known_eps = 0.0
    if KEEPS:
        anew = tl.load(mask + offsets, mask=inside, other=0) != 0
        known = tl.load(picture + offsets, mask=inside, other=0.0)
        if KEEPS == 2:
            known_eps = tl.load(eps + offsets, mask=inside, other=0.0)

    # Clip x_0.
    if CLIP:
        x_0 = tl.load(numbers + 1, cache_modifier=".ca") * z
        if READS & 1:
            x_0 = tl.load(numbers, cache_modifier=".ca") * before[0] + x_0  # pyright: ignore[reportGeneralTypeIssues]
        bound = tl.load(numbers + 2, cache_modifier=".ca")
        z = tl.where(x_0 > bound, bound, tl.where(x_0 < -bound, -bound, x_0))  # NaN stays NaN, as in torch.clamp

    # Noise: draw row + 1 of each sample's seed, or what was given.
    z_n = 0.0
    if NOISE:
        if xi is None:
            sample = offsets // tl.cast(size, tl.int64)
            seed = tl.load(seeds + sample, mask=inside, other=0, cache_modifier=".ca").to(tl.uint64, bitcast=True)
            z_n = normal(seed, offsets - sample * size, (row + 1).to(tl.uint32), BLOCK)
        else:
            z_n = tl.load(xi + offsets, mask=inside, other=0.0)

    # What a mask keeps.
    if KEEPS:
        factor = kept + tl.cast(row, tl.int64) * 2
        known = tl.load(factor, cache_modifier=".ca") * known
        if KEEPS == 2:
            known = known + tl.load(factor + 1, cache_modifier=".ca") * known_eps

    # Combine, everything before the first store.
    after = ()
    for j in tl.static_range(BUFFERS):
        if ((WRITES >> j) & 1) | (SEPARATE & (j == 0)):
            s_j = tl.load(numbers + 4 + j, cache_modifier=".ca") * z
            for i in tl.static_range(BUFFERS):
                if (READS >> i) & 1:
                    W_ji = tl.load(numbers + 4 + BUFFERS + j * BUFFERS + i, cache_modifier=".ca")
                    s_j = s_j + W_ji * before[i]
            if (NOISE >> j) & 1:
                V_j = tl.load(factors + tl.cast(row, tl.int64) * BUFFERS + j, cache_modifier=".ca")
                s_j = s_j + V_j * z_n
            if KEEPS and j == 0:
                s_j = tl.where(anew, s_j, known)
            after += (s_j,)
        else:
            after += (0.0,)

    # Write.
    for j in tl.static_range(BUFFERS):
        if (WRITES >> j) & 1:
            tl.store(states + j * stride + offsets, after[j], mask=inside)
    if SEPARATE:
        y = c_in * after[0]  # pyright: ignore[reportGeneralTypeIssues]
        if y_in.dtype.element_ty == tl.bfloat16:  # to nearest even on the bits; NaN becomes the quiet NaN, as in torch
            bits = y.to(tl.uint32, bitcast=True)
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            bits = tl.where(y == y, bits, 0x7FC0)
            tl.store(y_in + offsets, bits.to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=inside)
        else:
            tl.store(y_in + offsets, y.to(y_in.dtype.element_ty), mask=inside)


def _limited(registers: int) -> Kernel:
    return Kernel(step_kernel, warps=WARPS, registers=registers, unspecialised=("row",), helpers=(normal,))


KERNEL, DRAWING, LARGE = map(_limited, (REGISTERS, REGISTERS_WITH_NOISE, REGISTERS_OF_MANY))


def kernel_of(buffers: int, *, draws: bool) -> Kernel:
    """The step kernel for a number of states, with the registers that it needs; draws: it makes noise itself."""
    return LARGE if buffers >= MANY else DRAWING if draws else KERNEL


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
    """Apply row `row` of the table to the states in place, after the network returned `out`.

    states  float32 [B, n], contiguous, B in 1..8; overwritten
    y_in    n elements, float16, bfloat16 or float32; overwritten; None unless update.separate
    out     n elements, float16, bfloat16 or float32
    table   float32 [rows, 4 + B + B^2] (`table.coefficients`) on the same device
    seeds   int64 [samples] as `noise.noise` takes them, of which each has n / samples elements; for update.noise
    factors float32 [rows, B] (`table.noise_factors`), likewise
    xi      float32 [n], noise in place of that of the seeds
    kept    what a mask keeps, for update.keeps
    Raises ValueError when shapes, dtypes, devices or masks do not fit. Reads nothing back to the host. Equal
    bit for bit to `eager.step`.
    """
    _check(states, y_in, out, table, row, update)
    more: dict[str, Any] = {}
    if update.noise:
        more = {"factors": factors, "NOISE": update.noise, **_drawn(states, table, seeds, factors, xi)}
    if update.keeps:
        more |= {"KEEPS": update.keeps, **_kept(states, table, update, kept)}
    buffers, elements = states.shape
    if elements == 0:
        return
    if not runs_triton(states):
        eager.step(states, y_in, out, table, row, update, seeds, factors, xi=xi, kept=kept)
        return
    kernel_of(buffers, draws=bool(update.noise) and xi is None).launch(
        -(-elements // BLOCK),
        (states, states if y_in is None else y_in, out, table, row, elements),
        {
            "BUFFERS": buffers,
            "READS": update.reads,
            "WRITES": update.writes,
            "CLIP": update.clip,
            "SEPARATE": update.separate,
            "BLOCK": BLOCK,
            **more,
        },
    )


def _drawn(
    states: torch.Tensor,
    table: torch.Tensor,
    seeds: torch.Tensor | None,
    factors: torch.Tensor | None,
    xi: torch.Tensor | None,
) -> dict[str, Any]:
    """Where the kernel takes its noise from: seeds, and the elements of one sample; or xi. Raises ValueError."""
    if factors is None or (seeds is None and xi is None):
        raise ValueError("this update draws noise: give seeds and factors")
    if factors.dtype != torch.float32 or factors.shape != (len(table), len(states)) or not factors.is_contiguous():
        raise ValueError(f"factors {tuple(factors.shape)} must be contiguous float32 {[len(table), len(states)]}")
    if xi is not None:
        _check_like_a_state("xi", xi, states)
    given = [one for one in (factors, seeds if xi is None else xi) if one is not None]
    if any(one.device != states.device for one in given):
        raise ValueError(f"states, seeds, factors and xi are on several devices; put them on {states.device}")
    if xi is not None:
        return {"xi": xi}
    assert seeds is not None
    if seeds.dtype != torch.int64 or seeds.dim() != 1 or not len(seeds) or states.shape[1] % len(seeds):
        raise ValueError(
            f"seeds {tuple(seeds.shape)} of {seeds.dtype} must be int64, one a sample of {states.shape[1]}"
        )
    return {"seeds": seeds, "size": states.shape[1] // len(seeds)}


def _kept(states: torch.Tensor, table: torch.Tensor, update: Update, kept: Kept | None) -> dict[str, Any]:
    """The kernel's arguments for what a mask keeps. Raises ValueError."""
    if kept is None:
        raise ValueError("this update keeps a known picture: give kept")
    _check_like_a_state("picture", kept.picture, states)
    _check_like_a_state("eps", kept.eps, states)
    _check_like_a_state("mask", kept.mask, states, torch.uint8)
    factors = kept.factors
    if factors.dtype != torch.float32 or factors.shape != (len(table), 2) or not factors.is_contiguous():
        raise ValueError(f"factors of what is kept {tuple(factors.shape)} must be contiguous float32 {[len(table), 2]}")
    if any(one.device != states.device for one in (kept.picture, kept.eps, kept.mask, factors)):
        raise ValueError(f"states and what is kept are on several devices; put them on {states.device}")
    eps = {"eps": kept.eps} if update.keeps == WITH_NOISE else {}
    return {"picture": kept.picture, **eps, "mask": kept.mask, "kept": factors}


def _check_like_a_state(
    name: str, tensor: torch.Tensor, states: torch.Tensor, dtype: torch.dtype = torch.float32
) -> None:
    if tensor.dtype != dtype or tensor.numel() != states.shape[1] or not tensor.is_contiguous():
        raise ValueError(
            f"{name} {tuple(tensor.shape)} of {tensor.dtype} must be contiguous {dtype} with {states.shape[1]} elements"
        )


def _check(
    states: torch.Tensor, y_in: torch.Tensor | None, out: torch.Tensor, table: torch.Tensor, row: int, update: Update
) -> None:
    if states.dim() != 2 or not 1 <= len(states) <= MAX_BUFFERS or not states.is_contiguous():
        raise ValueError(
            f"states {tuple(states.shape)} must be one contiguous [B, n] tensor with B in 1..{MAX_BUFFERS}"
        )
    buffers, elements = states.shape
    if states.dtype != torch.float32 or table.dtype != torch.float32:
        raise ValueError(f"states and table must be float32, got {states.dtype} and {table.dtype}")
    if table.dim() != 2 or table.shape[1] != row_length(buffers) or not table.is_contiguous():
        raise ValueError(f"table {tuple(table.shape)} must be [rows, {row_length(buffers)}] for {buffers} states")
    if not 0 <= row < len(table):
        raise ValueError(f"row {row} is outside the table's {len(table)} rows")
    if (update.reads | update.writes) >> buffers:
        raise ValueError(f"masks {update.reads:b} and {update.writes:b} name states beyond {buffers}")
    if update.separate != (y_in is not None):
        raise ValueError("y_in must be given exactly when the update has a separate network input")
    for name, tensor in (("out", out), ("y_in", y_in)):
        if tensor is None:
            continue
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise ValueError(f"{name} is {tensor.dtype}, expected float16, bfloat16 or float32")
        if tensor.numel() != elements or not tensor.is_contiguous():
            raise ValueError(f"{name} {tuple(tensor.shape)} must be contiguous with {elements} elements, as the states")
    devices = {tensor.device for tensor in (states, out, table, y_in) if tensor is not None}
    if len(devices) > 1:
        raise ValueError(f"states, y_in, out and table are on {sorted(map(str, devices))}; put them on one device")
