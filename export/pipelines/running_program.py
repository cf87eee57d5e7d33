"""A program that the loop of a diffusers pipeline walks, one row a step. Its states stay here between the steps."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch

from ...engine.compiler.program import Program
from ...engine.compiler.schedule import Float64s
from ...engine.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


@final
class Running:
    """A program between its rows. States: float32, or float64 for float64 samples; never written in place."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._states: list[Tensor] = []

    def advance(self, n: int, out: Tensor, sample: Tensor, xi: Tensor | None = None) -> Tensor:
        """The next s_0, in the dtype of `sample`; xi: the noise that a stochastic program draws here."""
        program = self.program
        dtype = torch.promote_types(sample.dtype, torch.float32)
        given, out = sample.to(dtype), out.to(dtype)
        if self._states:
            # What the pipeline changed since the last step (masks, callbacks) is taken over, the rest stays exact.
            kept = self._states[0]
            if kept.shape != sample.shape:
                raise InputError(
                    f"sample {list(sample.shape)}, expected {list(kept.shape)} as in the last step; "
                    "call set_timesteps before another sample"
                )
            states = [torch.where(kept.to(sample.dtype) == sample, kept, given), *self._states[1:]]
        else:
            states = [
                given if init == program.init[0] else given * float(init / program.init[0]) for init in program.init
            ]
        raw = out
        if program.clip is not None:
            out = (states[0] * float(program.p[n]) + out * float(program.q[n])).clamp(-program.clip, program.clip)
        self._states = [_combined(program.W[n, j], program.w[n, j], states, out) for j in range(program.buffers)]
        if program.keeps_eps:
            self._states = [s + float(u) * raw for s, u in zip(self._states, program.U[n], strict=True)]
        if xi is not None:
            added = xi.to(dtype)
            self._states = [s + float(v) * added for s, v in zip(self._states, program.V[n], strict=True)]
        return self._states[0].to(sample.dtype)


def _combined(W: Float64s, w: float, states: Sequence[Tensor], out: Tensor) -> Tensor:
    total = out * float(w)
    for i in np.flatnonzero(W).tolist():
        total = total + states[i] * float(W[i])
    return total


def step_count(steps: Any) -> int:
    """A number of steps, also a whole float or a tensor of one number. Raises InputError."""
    number = math.nan
    if not isinstance(steps, (str, bool)) and str(getattr(steps, "dtype", "")).removeprefix("torch.") != "bool":
        with contextlib.suppress(TypeError, ValueError, RuntimeError):  # no number, or a tensor of several
            number = float(steps)
    if not (1 <= number < math.inf and number == math.floor(number)):
        raise InputError(f"num_inference_steps {steps!r}, expected a whole number of at least 1")
    return int(number)
