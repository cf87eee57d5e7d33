"""Normalisation as data: y = (x - low) gain + bias, for each number of an observation or an action."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...engine.errors import InputError

Floats = NDArray[np.float64]
SPANS = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}


@final
@dataclass(frozen=True, eq=False)
class Scaling:
    """Float64 arrays of one shape, that of the number or of what it is broadcast along."""

    low: Floats
    gain: Floats
    bias: Floats

    @classmethod
    def of(
        cls,
        mode: str,
        stats: Mapping[str, Any],
        name: str,
        shape: tuple[int, ...],
        *,
        eps: float,
        added: bool = False,
    ) -> Scaling:
        """LeRobot's modes. added: eps is added to every span, not to those of length 0 alone. Raises InputError.

        shape: of what is scaled; statistics are of this shape, those of a picture [C, H, W] also [C, 1, 1].
        """
        if mode == "IDENTITY":
            return cls.none()
        wanted = SPANS.get(mode, ("mean", "std"))
        if mode not in (*SPANS, "MEAN_STD"):
            raise InputError(
                f"normalisation '{mode}' of {name}, expected one of IDENTITY, MEAN_STD, {', '.join(SPANS)}"
            )
        if missing := [one for one in wanted if one not in stats]:
            raise InputError(f"{name}: its statistics have no {missing[0]}, which {mode} takes; save the policy again")
        first, second = (np.asarray(stats[one], np.float64) for one in wanted)
        if not (np.isfinite(first).all() and np.isfinite(second).all()):
            raise InputError(f"{name}: its statistics are not finite; save the policy with those of its data")
        for stat, values in zip(wanted, (first, second), strict=True):
            if values.shape not in (shape, (*shape[:1], *[1] * len(shape[1:]))):
                raise InputError(
                    f"{name}: its statistic {stat} is {list(values.shape)}, expected {list(shape)}; save the policy "
                    "again"
                )
        if not (math.isfinite(eps) and eps >= 0):
            raise InputError(f"{name}: eps {eps!r} of its normalisation, expected a number of at least 0")
        if mode == "MEAN_STD":
            return cls(first, 1 / (second + eps), np.zeros_like(first))
        span = second - first
        span = span + eps if added else np.where(span == 0, eps, span)
        return cls(first, 2 / span, -np.ones_like(first))

    @classmethod
    def none(cls) -> Scaling:
        """y = x."""
        return cls(np.zeros(()), np.ones(()), np.zeros(()))

    @classmethod
    def joined(cls, parts: Sequence[Scaling], sizes: Sequence[int]) -> Scaling:
        """Those of vectors of `sizes`, one after the other."""

        def all_of(field: str) -> Floats:
            pairs = zip(parts, sizes, strict=True)
            return np.concatenate([np.broadcast_to(getattr(one, field), (size,)) for one, size in pairs])

        return cls(all_of("low"), all_of("gain"), all_of("bias"))

    @staticmethod
    def actions(mode: str, stats: Mapping[str, Any], size: int, *, eps: float) -> tuple[Floats, Floats]:
        """(scale, offset) of the way back, actions = scale y + offset. Raises InputError."""
        if mode == "MEAN_STD":
            Scaling.of(mode, stats, "action", (size,), eps=eps)
            return np.asarray(stats["std"], np.float64), np.asarray(stats["mean"], np.float64)
        one = Scaling.of(mode, stats, "action", (size,), eps=eps)
        return 1 / one.gain, one.low - one.bias / one.gain


@final
class Scaled(nn.Module):
    """forward(x [..., *shape]) -> (x - low) gain + bias, float32."""

    low: Tensor
    gain: Tensor
    bias: Tensor

    def __init__(self, given: Scaling) -> None:
        super().__init__()
        for name in ("low", "gain", "bias"):
            self.register_buffer(name, torch.from_numpy(np.asarray(getattr(given, name))).float())

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.low) * self.gain + self.bias
