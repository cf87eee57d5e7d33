"""Group normalisation (Wu & He, arXiv 1803.08494) of channels-last tensors, without a copy into another layout.

    y = (x - mean) / sqrt(var + eps) weight + bias = shift + scale x        mean, var of each sample and group

PyTorch's CUDA kernel makes a channels-last tensor contiguous first, and its output makes the next convolution copy
back: 14 bytes an element in half precision, where 8 do. Here x is split into its groups as a view, mean and var are
reduced in float32, and one operation writes the output in the layout of x.

Compiled networks keep PyTorch's operator. The compiler decomposes it, reduces in one pass, and fuses what follows.
"""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Elements of x. Below, launches decide and not bytes: this takes six or seven, PyTorch four and a copy. A prediction.
LEAST_ELEMENTS = 1 << 18
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def without_layout_copies(module: nn.Module) -> None:
    """Change every `nn.GroupNorm` in `module`, which is ours to change. One with a forward of its own is left alone."""
    for one in module.modules():
        if type(one).forward is nn.GroupNorm.forward and "forward" not in vars(one):
            one.forward = MethodType(_forward, one)


def group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """`F.group_norm` of x [B, C, ..] without gradients: of a large channels-last x as above, of any other PyTorch's."""
    if torch.compiler.is_compiling() or not _worthwhile(x, groups):
        return F.group_norm(x, groups, weight, bias, eps)
    grouped = x.unflatten(1, (groups, -1))
    mean, var = _moments(grouped)
    # Scale and shift, [B, C] or without weight and bias [B, groups].
    each = (groups, -1, *[1] * (x.ndim - 2))
    scale = torch.rsqrt(var + eps)
    scale = scale if weight is None else scale * weight.view(each)
    shift = torch.neg(mean * scale) if bias is None else torch.addcmul(bias.view(each), mean, scale, value=-1)
    # Read x, write y: float32 inside, whatever the dtype of both.
    out = torch.empty_like(x)
    torch.addcmul(shift, grouped, scale, out=out.unflatten(1, (groups, -1)))
    return out


def _forward(norm: nn.GroupNorm, input: Tensor) -> Tensor:
    """In place of `nn.GroupNorm.forward`, whose parameter is called so."""
    return group_norm(input, norm.num_groups, norm.weight, norm.bias, norm.eps)


def _worthwhile(x: Tensor, groups: int) -> bool:
    """Whether x is large, dense with channels last, and nothing that PyTorch would refuse."""
    if x.ndim < 3 or x.dtype not in DTYPES or x.numel() < LEAST_ELEMENTS or x.shape[1] % groups:
        return False
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def _moments(grouped: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance float32 [B, groups, 1, ..] of each sample and group [B, groups, C / groups, ..].

    float32 is read once. `var_mean` rounds its results to the dtype of its input, so half precision is read twice, each
    time by a kernel that converts as it reads.
    """
    axes = tuple(range(2, grouped.ndim))
    if grouped.dtype == torch.float32:
        var, mean = torch.var_mean(grouped, axes, correction=0, keepdim=True)
        return mean, var
    mean = torch.mean(grouped, axes, keepdim=True, dtype=torch.float32)
    var = torch.var(grouped, axes, correction=0, keepdim=True, out=torch.empty_like(mean))
    return mean, var
