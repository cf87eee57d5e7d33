"""Tensors that a caller gives: they have a value for each element."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import InputError


def check_plain(given: Mapping[str, Any]) -> None:
    """Raises InputError for a tensor without values, or without one for each element. given: by name, as it came."""
    for name, tensor in given.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        if tensor.device.type == "meta":
            raise InputError(f"{name}: got a tensor on device meta, which has no values; give one on the CPU")
        if tensor.layout != torch.strided:
            kind = str(tensor.layout).removeprefix("torch.")
            raise InputError(f"{name}: got a {kind} tensor, expected a dense one; give {name}.to_dense()")
