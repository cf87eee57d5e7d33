"""The default sampler by a bounded measurement: of a handful the one whose samples are nearest to many evaluations'.

The rule (engine/compiler/defaults.py) is ahead of DDIM on trained networks, but a distribution of far-apart modes is
decided in the first, noisiest steps, where it spends few evaluations: a mixture of Gaussians in 64 dimensions has 1.5
times the error of DDIM on its best grid. So `build` runs the rule and `RIVALS` on a few seeds and keeps the best.

At most 600 calls of the network and 30 seconds are spent, counted here. A slow network is measured on two seeds with
fewer rivals; an NFE that the time does not pay for keeps the rule, and its record says so. An engine remembers its
records, under provenance "search", and does not measure the same again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...engine.compiler.compile import compile as compile_program
from ...engine.compiler.program import Program
from ...engine.compiler.schedule import parse_schedule
from ...engine.compiler.start import SHORT, default_start, time_of_alpha
from ...engine.contract.seed_conditions import condition_tables, rows
from ...engine.errors import InputError
from ...engine.progress import Stages
from ...engine.runtime.noise import noise

if TYPE_CHECKING:
    from ...engine.contract.contract import Contract
    from ..network import Network

CALLS, SECONDS = 600, 30.0
PLANNED = 0.7  # of the seconds: a loaded machine takes longer than the first calls did
HOPELESS = 5.0  # seconds of a first call after which no second one is tried
REFERENCE, REFERENCE_NFE = "ipndm:order=3", 48
ELEMENTS, MOST_SEEDS, FEWEST_SEEDS = 16384, 256, 2  # seeds until they have so many elements, and their bounds
SURE_SEEDS = 64  # from here on the least error decides
MARGIN = 0.95  # on fewer a rival takes the place of the rule when its error is below this part of the rule's
MARGIN_OF_FEW = 0.85  # the same on fewer than 8 seeds
SEED = 1 << 41  # the first seed; those of `tune` lie lower
# Solver, grid, basis, alpha at the start (None: `default_start`): what wins where the rule does not, and DDIM on the
# grids that are its best. Where calls are short the last are left out: DDIM is behind when evaluations are many.
RIVALS: tuple[tuple[str, str, str | None, float | None], ...] = (
    ("pfdiff:k=2,l=1", "uniform", "eps", 0.03),
    ("ipndm:order=3", "karras", "eps", 0.03),
    ("pfdiff:k=2,l=1", "angle", "eps", None),
    ("ipndm:order=3", "trailing", "x0", None),
    ("ddim", "karras:rho=3", None, 0.08),
    ("ddim", "trailing", None, None),
    ("pfdiff:k=2,l=1", "karras", "eps", 0.03),
    ("ddim", "trailing", None, 0.08),
    ("ddim", "karras", None, None),
)
# Before these on a schedule of at most `SHORT` times, where many evaluations come near to the walk over every time.
SHORT_RIVALS: tuple[tuple[str, str, str | None, float | None], ...] = (
    ("ddim", "karras:rho=3", None, None),
    ("pfdiff:k=1,l=1", "uniform", "eps", None),
)


@final
@dataclass(frozen=True)
class Measured:
    """The best program of an NFE, and the record of the measurement as plain JSON data."""

    program: Program
    record: dict[str, Any]


class SpentError(Exception):
    """The next call would be the 601st, or come after 30 seconds."""


def measured(source: Network, by_rule: Mapping[int, Program], progress: Stages | None = None) -> dict[int, Measured]:
    """By NFE the best of the rule's program and its rivals; the rule's where the bounds do not pay for rivals.

    Nothing for a network whose conditions have no typical values. Raises InputError when the network fails.
    """
    if not has_typical_inputs(source.contract):
        return {}
    meter = _Meter(source, progress)
    plans = {nfe: [program, *_rivals(program)] for nfe, program in sorted(by_rule.items())}
    reference = reference_of(next(iter(plans.values()))[0])
    expected = reference.nfe + sum(nfe * len(plan) for nfe, plan in plans.items())
    found = {nfe: Measured(one, _record([one], [math.inf], 0, 0, reference, meter)) for nfe, one in by_rule.items()}
    try:
        seeds = meter.fit(min(expected, CALLS))
        meter.expected = min(expected, meter.limit)
        if meter.limit - meter.calls < reference.nfe + 2 * min(plans):
            return found
        truth = meter.sample(reference)
        share = max(2, (meter.limit - meter.calls) // sum(plans))  # samplers of each NFE, so that none is left out
        for nfe, plan in plans.items():
            plan = plan[: min(share, (meter.limit - meter.calls) // nfe)]
            if len(plan) < 2:
                continue
            squares = [_squares(meter.sample(one), truth) for one in plan]
            errors = [math.sqrt(one.mean()) for one in squares]
            best = int(np.argmin(errors))
            best = best if _is_better(squares[best], squares[0]) else 0
            found[nfe] = Measured(plan[best], _record(plan, errors, best, seeds, reference, meter))
    except SpentError:
        pass
    return found


def is_remembered(record: Any, by_rule: Program, held: Program | None) -> bool:
    """Whether the record of an engine is of a measurement with this rule, and `held` what it found."""
    return (
        isinstance(record, dict)
        and held is not None
        and record.get("rule") == by_rule.digest
        and record.get("program") == held.digest
    )


# Conditions.
def has_typical_inputs(contract: Contract) -> bool:
    """Whether there are values to measure with: not for embeddings, say, that have no default."""
    return all(
        one.default is not None or one.labels or one.name in class_numbers(contract) for one in contract.conditions
    )


def class_numbers(contract: Contract) -> dict[str, Any]:
    """Every class in turn, for class numbers without a default and without names."""
    return {
        one.name: np.arange(one.low, min(one.high, one.low + MOST_SEEDS) + 1)
        for one in contract.conditions
        if one.default is None and not one.labels and not one.shape
        if one.dtype.startswith("int") and one.low is not None and one.high is not None
    }


# The network.
@final
class _Meter:
    """Runs programs on the network itself, in float32, and counts its calls."""

    def __init__(self, source: Network, progress: Stages | None) -> None:
        self._source = source
        self._progress = progress
        self._start = time.monotonic()
        self._noise = torch.zeros(0)
        self._conditions: dict[str, Any] = {}
        self.calls = 0
        self.limit = CALLS
        self.expected = 0

    def fit(self, expected: int) -> int:
        """How many seeds so many calls take in the time, two at least. Prepares them, and bounds the calls.

        Two seeds are timed first, as one call of many may outlast the bound; a call of more seeds costs less for each.
        """
        contract = self._source.contract
        wanted = min(MOST_SEEDS, max(8, math.ceil(ELEMENTS / math.prod(contract.shape))))
        fewest = contract.fixed_batch or FEWEST_SEEDS
        wanted, seeds = contract.fixed_batch or wanted, fewest
        for attempt in range(3):
            self._draw(seeds)
            call = self._seconds_of_a_call(first=attempt == 0)
            affordable = int(seeds * PLANNED * SECONDS / (call * expected))
            if affordable < fewest:
                seeds, self.limit = fewest, min(CALLS, self.calls + int(PLANNED * SECONDS / call))
                break
            if affordable <= seeds or seeds == wanted:
                seeds = min(seeds, affordable)
                break
            seeds = min(wanted, affordable)
        self._draw(seeds)
        return seeds

    def _draw(self, seeds: int) -> None:
        contract = self._source.contract
        drawn = range(SEED, SEED + seeds)
        self._noise = torch.from_numpy(noise(drawn, contract.shape).numpy())
        self._conditions = rows(condition_tables(contract, class_numbers(contract)), np.array(drawn, np.uint64))

    def _seconds_of_a_call(self, *, first: bool) -> float:
        """Of the second call where the first prepares what later ones reuse, unless the first alone is hopeless."""
        last = parse_schedule(self._source.contract.schedule).last
        seconds = math.inf
        for _ in range(2 if first else 1):
            start = time.monotonic()
            self._call(self._noise, last)
            seconds = max(time.monotonic() - start, 1e-6)
            if seconds > HOPELESS:
                break
        return seconds

    def _call(self, x: Tensor, t: float) -> Tensor:
        if self.calls >= CALLS or time.monotonic() - self._start > SECONDS:
            raise SpentError
        self.calls += 1
        if self._progress and self.expected:
            self._progress("measuring samplers", min(self.calls, self.expected), self.expected)
        fed = self._source.contract.feed_times(np.array([t]))[0].item()
        return self._source.evaluate(x.float(), fed, self._conditions)

    def sample(self, program: Program) -> Tensor:
        """Samples [seeds, *shape]. Raises SpentError."""
        return program.evaluate(self._call, self._noise)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start


# Programs.
def _like(program: Program, nfe: int, solver: str, grid: str, basis: str | None, t_start: float) -> Program:
    """Another sampler of the same network, with the same clip and end. Raises InputError."""
    return compile_program(
        solver,
        program.schedule,
        nfe,
        grid,
        basis,
        program.prediction,
        program.clip,
        t_start,
        program.end,
        program.sigma_data,
    )


def _rivals(program: Program) -> list[Program]:
    process, found = parse_schedule(program.schedule), []
    latest = default_start(program.schedule, program.prediction, program.clip)
    short = process.discrete and latest - process.first < SHORT
    for solver, grid, basis, alpha in (*SHORT_RIVALS, *RIVALS) if short else RIVALS:
        start = latest if alpha is None else min(latest, time_of_alpha(process, alpha))
        try:
            found.append(_like(program, program.nfe, solver, grid, basis, start))
        except InputError:  # a short schedule, too few times
            continue
    return found


def reference_of(program: Program) -> Program:
    """A short schedule is walked whole with DDIM, as in `tune`.

    Elsewhere an error below 0.01 on every network of the study: Karras sigmas where x0 is sensitive, else even times.
    """
    process = parse_schedule(program.schedule)
    start = default_start(program.schedule, program.prediction, program.clip)
    every = int(start - process.first) + 1
    if process.discrete and every <= SHORT:
        return _like(program, every, "ddim", "uniform", None, start)
    wide = process.prior_scale(start) > 1 or (program.prediction == "eps" and process.velocity != "flow")
    basis = "v" if process.velocity == "flow" else "eps"
    if process.velocity != "flow" and float(process.alpha(start)) == 0:
        basis = "x0"
    return _like(program, REFERENCE_NFE, REFERENCE, "karras" if wide else "uniform", basis, start)


def _squares(found: Tensor, truth: Tensor) -> NDArray[np.float64]:
    """Of each seed the mean square error, float64 [seeds]; infinite where a sample is not finite."""
    squares = (found.double() - truth.double()).square().flatten(1).mean(1).numpy()
    return np.where(np.isfinite(squares), squares, math.inf)


def _is_better(rival: NDArray[np.float64], rule: NDArray[np.float64]) -> bool:
    """Whether a rival is ahead; on few seeds by the margin and a standard error, as one of them may hold it all."""
    if not np.isfinite(rule).all():
        return bool(np.isfinite(rival).all())
    gain = rule - rival
    if len(gain) >= SURE_SEEDS:
        return bool(gain.mean() > 0)
    margin = MARGIN if len(rule) >= 8 else MARGIN_OF_FEW
    certain = len(gain) < 2 or gain.mean() > gain.std(ddof=1) / math.sqrt(len(gain))
    return bool(math.sqrt(rival.mean()) < margin * math.sqrt(rule.mean()) and certain)


def _record(
    plan: Sequence[Program], errors: Sequence[float], best: int, seeds: int, reference: Program, meter: _Meter
) -> dict[str, Any]:
    """In the form of `tune`'s record, best first; an error that is not finite is None."""
    order = [best, *(i for i in np.argsort(errors).tolist() if i != best)]
    return {
        "nfe": plan[0].nfe,
        "calibration_seeds": seeds,
        "held_out_seeds": 0,
        "criterion": f"RMS distance to {reference.solver} in {reference.nfe} evaluations",
        "reference": {"solver": reference.solver, "grid": reference.grid, "nfe": reference.nfe},
        "evaluations": meter.calls * seeds,
        "calls": meter.calls,
        "seconds": round(meter.seconds, 2),
        "complete": len(plan) > 1,
        "rule": plan[0].digest,
        "program": plan[best].digest,
        "ranking": [
            {
                "solver": plan[i].solver,
                "grid": plan[i].grid,
                "basis": plan[i].basis,
                "t_start": plan[i].t_start,
                "clip": plan[i].clip,
                "error": errors[i] if math.isfinite(errors[i]) else None,
                "held_out_error": None,
            }
            for i in order
        ],
    }
