"""Classifier-free guidance of an nn.Module: both halves in one batch, combined in float32; or the conditional alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import numpy as np
import torch
from torch import Tensor, nn

from ...engine.backends.guided import Guided, UnitScale
from ..sources.module_call import Call, Normalised
from .options import NAME, Halves

if TYPE_CHECKING:
    from ..sources.from_module import ModuleSource


@final
class ClassifierFreeModule(nn.Module):
    """forward(x [B, *shape], t [B] or [], conditions..., guidance [B]) -> guided prediction, float32."""

    def __init__(self, source: ModuleSource, halves: Halves) -> None:
        super().__init__()
        self.network = Normalised(source.module, source.call)
        self.names = tuple(halves.values)
        self.at_run_time = tuple((name, value) for name, value in halves.values.items() if isinstance(value, str))
        self.interval = halves.interval
        self.rescale = float(halves.guidance.rescale)
        self.offset, self.keep = float(halves.guidance.offset), halves.guidance.keep
        for name, value in halves.values.items():
            if isinstance(value, np.ndarray):
                self.register_buffer(f"unconditional_{name}", torch.from_numpy(value.copy()), persistent=False)

    def forward(self, x: Tensor, t: Tensor, /, **given: Tensor) -> Tensor:
        # Both halves in one batch.
        conditions = [torch.cat((given[name], self._unconditional(name, given))) for name in self.names]
        out = self.network(torch.cat((x, x)), torch.cat((t, t)) if t.ndim else t, *conditions)
        conditional, unconditional = out.float().reshape(2, *x.shape).unbind(0)
        # The scale, 1 outside the interval.
        scale = given[NAME] + self.offset if self.offset else given[NAME]
        if self.interval is not None:
            low, high = self.interval
            scale = torch.where((t >= low) & (t <= high), scale, torch.ones_like(scale))
        scale = scale.reshape(-1, *[1] * (x.ndim - 1))
        guided = unconditional + scale * (conditional - unconditional)
        if self.rescale:
            ratio = _deviation(conditional) / _deviation(guided).clamp(min=1e-12)
            guided = guided * (1 - self.rescale + self.rescale * ratio)
        if self.keep:
            guided = guided * (_length(conditional, self.keep) / _length(guided, self.keep))
        return guided

    def conditional(self, x: Tensor, t: Tensor, /, **given: Tensor) -> Tensor:
        """What forward returns where the scale is 1, to rounding: the prediction with the condition, float32."""
        return self.network(x, t, *(given[name] for name in self.names)).float()

    def _unconditional(self, name: str, given: dict[str, Tensor]) -> Tensor:
        other = dict(self.at_run_time).get(name)
        if other is not None:
            return given[other]
        value = getattr(self, f"unconditional_{name}", None)
        return given[name] if value is None else value.to(given[name].dtype).expand_as(given[name])


@final
class GuidedCall(nn.Module, Guided):
    """forward(x, t, *conditions) -> guided prediction in the dtype of x: what backend torch evaluates."""

    def __init__(self, module: ClassifierFreeModule, call: Call) -> None:
        super().__init__()
        self.network = Normalised(module, call)
        self.module = module
        self.names = call.parameters[2:]
        self.unit_scale = UnitScale(NAME, module.offset, module.interval)

    def forward(self, x: Tensor, t: Tensor, *conditions: Tensor) -> Tensor:
        return self.network(x, t, *conditions)

    def conditional(self, *inputs: Tensor) -> Tensor:
        x, t, *conditions = inputs
        return self.module.conditional(x, t, **dict(zip(self.names, conditions, strict=True))).to(x.dtype)


def _length(x: Tensor, keep: str) -> Tensor:
    """Of each row [B, C, H, 1], or of each patch of 2 x 2 over all channels [B, 1, H, W]."""
    if keep == "rows":
        return torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    squares = x.square().sum(1, keepdim=True)
    patches = nn.functional.avg_pool2d(squares, 2) * 4
    return patches.sqrt().repeat_interleave(2, -1).repeat_interleave(2, -2)


def _deviation(x: Tensor) -> Tensor:
    """Standard deviation of each sample, [B, 1, ...]."""
    axes = tuple(range(1, x.ndim))
    centred = x - x.mean(axes, keepdim=True)
    return centred.square().mean(axes, keepdim=True).sqrt()
