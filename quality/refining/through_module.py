"""A table over answers run through an nn.Module with gradients: d sample / d (table, times) by backpropagation.

Samples are run a few at a time, so that their activations fit into `ACTIVATION_BYTES`. Where not even `LEAST` fit,
evaluations are computed again on the way back (checkpoints), which costs a third more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...engine.compiler.basis import PRECONDITIONED
from ...engine.compiler.program import Program
from ...engine.compiler.schedule import Float64s, parse_schedule
from ...engine.contract.contract import Contract
from .jacobian import at_times

ACTIVATION_BYTES = 768 << 20  # of the samples that are run at once
MICRO, LEAST = 16, 4  # samples at once: no more, and no fewer unless evaluations are computed twice
SLOPE_STEP = 0.05  # of the distance to the nearest time, for the slopes of what depends on a time


@final
@dataclass(eq=False)
class ThroughModule:
    """forward(x, t, *conditions) on a pool of seeds, and tables run through it; everything float32 but the table.

    noise [n, *shape]; conditions [n, ...] each. `program` says schedule, prediction and clip. charge(samples) is called
    before each evaluation, a way back counting as two more, and may end the run by an exception.
    """

    module: nn.Module
    contract: Contract
    program: Program
    noise: Tensor
    conditions: Sequence[Tensor]
    charge: Callable[[int], None] = lambda _: None
    checkpointed: bool = field(default=False, init=False)
    evaluations: int = field(default=0, init=False)  # samples through the network once; a way back counts as two more
    _saved: int | None = field(default=None, init=False)

    @cached_property
    def moves_times(self) -> bool:
        """Whether times are fitted too; not where what an evaluation is fed is defined at whole times alone."""
        discrete = parse_schedule(self.program.schedule).discrete
        dependent = self.program.clip is not None or self.program.prediction in PRECONDITIONED
        return self.contract.time_dtype == "float32" and not (discrete and dependent)

    # Times.
    def fed(self, times: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(network time, c_in, p, q) [N] each at float64 times [N], with their slopes where times have gradients."""
        here = times.detach().numpy()
        values = _fed_at(self.program, here)
        if not times.requires_grad:
            return tuple(torch.from_numpy(one) for one in values)  # pyright: ignore[reportReturnType]  # four
        process = parse_schedule(self.program.schedule)
        step = SLOPE_STEP * np.maximum(gaps_between(self.program, here), 1e-9)
        above, below = np.minimum(here + step, process.last), np.maximum(here - step, process.first)
        slopes = [
            (up - down) / (above - below)
            for up, down in zip(_fed_at(self.program, above), _fed_at(self.program, below), strict=True)
        ]
        moved = times - times.detach()
        pairs = zip(values, slopes, strict=True)
        return tuple(  # pyright: ignore[reportReturnType]  # four
            torch.from_numpy(value) + torch.from_numpy(slope) * moved for value, slope in pairs
        )

    # A run.
    def run(
        self,
        table: Tensor,
        times: Tensor,
        rows: Tensor,
        keep: list[Tensor] | None = None,
        known: Sequence[Tensor] = (),
    ) -> Tensor:
        """Samples [m, *shape] of the table float64 [N+1, N+1] asked at `times` [N].

        keep: gets y_0, z_0, y_1, z_1, ... known: the first answers, which are not asked for again.
        """
        noise = self.noise[rows]
        fed = self.fed(times)
        given = [one[rows] for one in self.conditions]
        answers = list(known)
        for n in range(len(known), len(times)):
            y = combined(table[n], noise, answers)
            answers.append(self.answer(y, n, fed, given))
            if keep is not None:
                keep += [y, answers[-1]]
        return combined(table[len(times)], noise, answers)

    def answer(self, y: Tensor, n: int, fed: tuple[Tensor, Tensor, Tensor, Tensor], given: list[Tensor]) -> Tensor:
        """z_n [m, *shape] at y [m, *shape]."""
        t, c_in, p, q = (one[n].float() for one in fed)
        shape = (len(y),) if self.contract.time_rank else ()
        time = (t * self.contract.time_scale).expand(shape)
        if not self.moves_times:
            time = time.detach().round().to(getattr(torch, self.contract.time_dtype))
        x = c_in * y
        again = torch.is_grad_enabled() and self.checkpointed
        count = len(y) * ((3 if torch.is_grad_enabled() else 1) + again)
        self.charge(count)
        self.evaluations += count
        module = partial(checkpoint, self.module, use_reentrant=False) if again else self.module
        out = module(x, time, *given)
        assert isinstance(out, Tensor)
        clip = self.program.clip
        return out if clip is None else (p * y + q * out).clamp(-clip, clip)

    def time_step(self, time: float, unit: float, least: float) -> float:
        """Of a forward difference in a time, counted in `unit`: towards the clean end where the schedule has room."""
        return -least if time - least * unit >= parse_schedule(self.program.schedule).first else least

    def micro_batch(self, nfe: int) -> int:
        """Samples whose whole run may keep its activations, at most MICRO; where LEAST do not fit, with checkpoints."""
        if self._saved is None:
            self._saved = self._activations()
        fit = ACTIVATION_BYTES // max(1, self._saved * nfe)
        self.checkpointed = fit < LEAST
        return int(min(max(fit, LEAST), MICRO))

    def _activations(self) -> int:
        """Bytes that the way back of one evaluation of one sample keeps."""
        kept_bytes = 0

        def count(kept: Tensor) -> Any:
            nonlocal kept_bytes
            kept_bytes += kept.numel() * kept.element_size()
            return kept

        time, c_in = (float(one[0]) for one in self.fed(torch.from_numpy(self.program.times.copy()))[:2])
        t = torch.full((1,) if self.contract.time_rank else (), time * self.contract.time_scale)
        t = t if self.moves_times else t.round().to(getattr(torch, self.contract.time_dtype))
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda kept: kept):
            x = (c_in * float(self.program.init[0]) * self.noise[:1]).requires_grad_()
            self.module(x, t.to(getattr(torch, self.contract.time_dtype)), *(one[:1] for one in self.conditions))
        self.evaluations += 1
        return kept_bytes


def combined(row: Tensor, noise: Tensor, answers: Sequence[Tensor]) -> Tensor:
    """row[0] noise + sum of row[1 + m] answers[m], in float32."""
    factors = row.float()
    total = factors[0] * noise
    for m, z in enumerate(answers):
        total = total + factors[1 + m] * z
    return total


def gaps_between(program: Program, times: Float64s) -> Float64s:
    """Distance of each time to the nearest other one or to the clean point."""
    distance = np.abs(times[:, None] - np.append(times, parse_schedule(program.schedule).clean)[None, :])
    distance[np.arange(len(times)), np.arange(len(times))] = np.inf
    return distance.min(axis=1)


def _fed_at(program: Program, times: Float64s) -> tuple[Float64s, Float64s, Float64s, Float64s]:
    """(network times, c_in, p, q) at any times inside the schedule."""
    if program.prediction not in PRECONDITIONED and program.clip is None:
        ones = np.ones(len(times))
        return times.copy(), ones, np.zeros(len(times)), ones.copy()
    moved = at_times(program, times)
    return moved.network_times.copy(), moved.c_in.copy(), moved.p.copy(), moved.q.copy()
