"""The variances that Analytic-DPM needs (engine/compiler/solvers/stochastic/analytic.py), estimated from the network.

V_s = E |x_0 - E[x_0 | x_s]|^2 / d is the mean square error of the network's own x_0 at time s. The paper has the same
number as (sigma_s/alpha_s)^2 (1 - E |eps|^2 / d), which is a small difference of large ones where there is much noise;
both agree for a network without error, and for any other this one is the best (Bao et al., arXiv 2206.07309).

x_0 are the network's own samples in `SAMPLED` evaluations of the default sampler with the class labels in turn, clipped
to the data's range; x_s is made of them by the forward process. V_s is at most the square of half that range (theorem 2
of arXiv 2201.06503). Latents have no range. Seeds are the same in every build, but fewer for a network that is slow.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor

from ...engine.compiler.basis import convert
from ...engine.compiler.compile import compile as compile_program
from ...engine.compiler.defaults import AUTO, Choice
from ...engine.compiler.grid import make_grid
from ...engine.compiler.program import Program
from ...engine.compiler.schedule import parse_schedule
from ...engine.compiler.solvers import parse_solver
from ...engine.compiler.solvers.stochastic.analytic import Analytic
from ...engine.contract.seed_conditions import condition_tables, rows
from ...engine.errors import InputError
from ...engine.philox import fill_numpy
from .meter import class_numbers, has_typical_inputs

if TYPE_CHECKING:
    from ..network import Network

SAMPLED = 20  # evaluations of one x_0
ELEMENTS, MOST_SEEDS, FEWEST_SEEDS = 65536, 256, 2  # seeds until they have so many elements, and their bounds
SECONDS = 300.0  # planned by the second of two calls
SEED = (1 << 41) + (1 << 20)  # the first seed; those of the measured default and of `tune` lie lower
DIGITS = 4


def with_variances(source: Network, choice: Choice, nfe: int, settings: Mapping[str, Any]) -> Choice:
    """The choice with its solver's variances where it lacks them; settings: clip and end. Raises InputError."""
    method = parse_solver(choice.solver)
    if not isinstance(method, Analytic) or not method.lacks_variances:
        return choice
    contract = source.contract
    if not has_typical_inputs(contract):
        raise InputError(f"{method}: the variances of a network with given conditions are not estimated; give x0_var=")
    end = "clean" if settings["end"] is None else settings["end"]
    process = parse_schedule(contract.schedule)
    grid = "uniform" if choice.grid is None else choice.grid
    points = make_grid(grid, process, method.intervals(nfe), choice.t_start, end, method.evaluations)
    found = Forward(source, settings["clip"]).variances(method.step_starts(points))
    return replace(choice, solver=str(method.with_variances(found)))


@final
class Forward:
    """Samples of the network, and the network's errors on them once they are noised again."""

    def __init__(self, source: Network, clip: float | None) -> None:
        self._source, self._clip = source, clip
        contract = source.contract
        self._process = parse_schedule(contract.schedule)
        self._elements = math.prod(contract.shape)
        low, high = contract.data_range
        self._range = (low, high) if math.isfinite(high - low) and source.decoder is None else None

    def variances(self, times: np.ndarray) -> tuple[float, ...]:
        """V of each time, to `DIGITS` digits."""
        seeds = self._affordable(len(times))
        keys, conditions = self._drawn(seeds)
        x_0 = self._program(AUTO, SAMPLED, None).evaluate(self._fed(conditions), self._noise(keys, 0))
        if self._range:
            x_0 = x_0.clamp(*self._range)
        # One program for all times, so that each is fed as the network wants it.
        order = [float(t) for t in times]
        walked = self._program("ddim", len(order), (*order, self._process.clean))
        return tuple(self._error(walked, n, x_0, self._noise(keys, n + 1), conditions) for n in range(len(order)))

    def _error(self, walked: Program, n: int, x_0: Tensor, eps: Tensor, conditions: dict[str, Any]) -> float:
        t, contract = float(walked.times[n]), self._source.contract
        x_t = float(self._process.alpha(t)) * x_0 + float(self._process.sigma(t)) * eps
        out = self._fed(conditions)(float(walked.c_in[n]) * x_t, float(walked.network_times[n]))
        p, q = convert("x0", contract.prediction, t, self._process, contract.sigma_data)
        found = p * x_t.double() + q * out.double()
        if self._clip is not None:
            found = found.clamp(-self._clip, self._clip)
        error = float((found - x_0.double()).square().mean())
        if not math.isfinite(error):
            raise InputError(f"the network's x0 at time {t:g} is not finite: no variance can be estimated")
        if self._range:
            error = min(error, ((self._range[1] - self._range[0]) / 2) ** 2)
        return float(f"{error:.{DIGITS}g}")

    def _affordable(self, times: int) -> int:
        """How many seeds the time pays for, by the second of two calls."""
        contract = self._source.contract
        wanted = min(MOST_SEEDS, max(16, math.ceil(ELEMENTS / self._elements)))
        if contract.fixed_batch:
            return contract.fixed_batch
        keys, conditions = self._drawn(FEWEST_SEEDS)
        x, seconds = self._noise(keys, 0), math.inf
        for _ in range(2):
            start = time.monotonic()
            self._fed(conditions)(x, self._process.last)
            seconds = min(seconds, time.monotonic() - start)
        affordable = FEWEST_SEEDS * SECONDS / (max(seconds, 1e-6) * (SAMPLED + times))
        return max(FEWEST_SEEDS, min(wanted, int(affordable)))

    def _drawn(self, seeds: int) -> tuple[np.ndarray, dict[str, Any]]:
        contract = self._source.contract
        keys = np.arange(SEED, SEED + seeds, dtype=np.uint64)
        return keys, rows(condition_tables(contract, class_numbers(contract)), keys)

    def _noise(self, keys: np.ndarray, draw: int) -> Tensor:
        xi = np.empty((len(keys), self._elements), np.float32)
        fill_numpy(xi, keys, draw)
        return torch.from_numpy(xi).reshape(len(keys), *self._source.contract.shape)

    def _fed(self, conditions: dict[str, Any]) -> Any:
        contract = self._source.contract
        batch = contract.fixed_batch or max(1, ELEMENTS // self._elements)

        def network(x: Tensor, t: float) -> Tensor:
            fed = contract.feed_times(np.array([t]))[0].item()
            parts = [slice(first, first + batch) for first in range(0, len(x), batch)]
            given = [{name: values[part] for name, values in conditions.items()} for part in parts]
            found = [self._source.evaluate(x[part].float(), fed, one) for part, one in zip(parts, given, strict=True)]
            return torch.cat(found).float()

        return network

    def _program(self, solver: str, nfe: int, grid: Any) -> Program:
        contract = self._source.contract
        return compile_program(
            solver,
            contract.schedule,
            nfe,
            grid,
            None,
            contract.prediction,
            self._clip if solver == AUTO else None,
            sigma_data=contract.sigma_data,
        )
