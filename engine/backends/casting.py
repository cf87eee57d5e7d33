"""A module in another floating-point dtype, on another device: the one rule that exporter and backends share.

Weights are cast; frequencies (buffers, and frozen vectors beside learned weights) stay float32, like the time that they
multiply; where float32 meets a half-precision layer of torch.nn, the layer's input is cast.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError


def cast_copy(
    module: nn.Module, dtype: torch.dtype, device: torch.device | str = "cpu", *, consumes: bool = False
) -> nn.Module:
    """A copy of `module` on `device` with weights of `dtype`, each cast once on the way; the module stays as it is.

    No second copy in the old dtype ever exists. consumes: each weight of the module gives its memory back once it is
    cast. Raises InputError when the module cannot be copied.
    """
    memo: dict[int, Any] = {}
    changed = False
    for owner in module.modules():
        learns = any(parameter.requires_grad for parameter in owner.parameters(recurse=False))
        for parameter in owner.parameters(recurse=False):
            if consumes and id(parameter) in memo:
                continue  # shared, and cast
            # A frozen vector beside learned weights is a table of frequencies: float32, like the time it multiplies.
            constant = learns and not parameter.requires_grad and parameter.ndim <= 1
            kept = not parameter.is_floating_point()
            target = parameter.dtype if kept else torch.float32 if constant else dtype
            changed |= target != parameter.dtype
            memo[id(parameter)] = nn.Parameter(_own(parameter, device, target), requires_grad=False)
            if consumes:
                parameter.data = parameter.data.new_empty(0)
        # Buffers are frequencies and the like and stay float32; running statistics go with their weights.
        statistics = isinstance(owner, nn.modules.batchnorm._NormBase)
        for buffer in owner.buffers(recurse=False):
            target = (dtype if statistics else torch.float32) if buffer.is_floating_point() else buffer.dtype
            changed |= target != buffer.dtype
            memo[id(buffer)] = _own(buffer, device, target)
        for value in vars(owner).values():  # a table that was never registered goes along as it is
            if isinstance(value, Tensor):
                memo[id(value)] = _own(value, device, value.dtype)
    try:
        duplicate = copy.deepcopy(module, memo)
    except Exception as error:
        line = next(iter(str(error).splitlines()), "")[:200]
        raise InputError(
            f"{type(module).__name__} cannot be copied to change its dtype or device ({type(error).__name__}: {line}); "
            "give a float32 module on the CPU and build with precision fp32"
        ) from error
    for owner in duplicate.modules() if changed else ():
        weight = next((one for one in owner.parameters(recurse=False) if one.is_floating_point()), None)
        if weight is not None and type(owner).__module__.startswith("torch.nn."):
            owner.register_forward_pre_hook(_cast_inputs(weight.dtype), with_kwargs=True)
    return duplicate


@contextlib.contextmanager
def own_dtypes(device_type: str) -> Iterator[None]:
    """The network computes in the dtypes it was cast to, whatever `torch.autocast` the caller stands in.

    `torch.autocast(.., enabled=False)` says the same, but warns for CUDA where there is none, as in shape checks.
    """
    before = torch.is_autocast_enabled(device_type)
    torch.set_autocast_enabled(device_type, False)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device_type, before)


def _own(tensor: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """Converted, and never the memory of `tensor` itself on a GPU, where the copy outlives what it was made from."""
    on_gpu = torch.device(device).type == "cuda"
    return tensor.detach().to(device, dtype, copy=on_gpu)


def _cast_inputs(dtype: torch.dtype) -> Any:
    """A hook that casts floating inputs to the layer's weights: where float32 time meets a half-precision layer."""

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}

    return hook
