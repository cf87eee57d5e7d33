"""The default sampler by a bounded measurement: of a handful the one whose samples are nearest to many evaluations'.

The rule (engine/compiler/defaults.py) is ahead of DDIM on trained networks, but a distribution of far-apart modes is
decided in the first, noisiest steps, where it spends few evaluations: a mixture of Gaussians in 64 dimensions has 1.5
times the error of DDIM on its best grid. An untrained network may be far better off with DDIM. So `build` runs the
rule and `RIVALS`, among them DDIM on its grids, on a few seeds and keeps the best.

What calls are left then go into a finer reference and into further grids of DDIM (second_look.py), where they matter.

At most 600 calls of the network and 30 seconds are spent (meter.py). A slow network is measured on two seeds with
fewer rivals; an NFE that the time does not pay for keeps the rule, and its record says so. An engine remembers its
records, under provenance "search", and does not measure the same again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...engine.compiler.compile import compile as compile_program
from ...engine.compiler.program import Program
from ...engine.compiler.schedule import parse_schedule
from ...engine.compiler.start import SHORT, default_start, time_of_alpha
from ...engine.errors import InputError
from ...engine.progress import Stages
from .meter import CALLS, Meter, SpentError, has_typical_inputs
from .second_look import Look, finer, on_further_grids

if TYPE_CHECKING:
    from ..network import Network

REFERENCE, REFERENCE_NFE = "ipndm:order=3", 48
SURE_SEEDS = 64  # from here on the least error decides
MARGIN = 0.95  # on fewer a rival takes the place of the rule when its error is below this part of the rule's
MARGIN_OF_FEW = 0.85  # the same on fewer than 8 seeds
FEW_SAMPLERS = 6  # of an NFE; where the calls pay for no more, the reference is not doubted
KEPT_DDIM = 2
Rival = tuple[str, str, str | None, float | None]
# Solver, grid, basis, alpha at the start (None: `default_start`): what wins where the rule does not, and DDIM on the
# grids that are its best. The first NFE is measured with all of them. Where calls are short the next ones are measured
# with the `KEPT_DDIM` that were the best of DDIM before, and with the other solvers.
RIVALS: tuple[Rival, ...] = (
    ("pfdiff:k=2,l=1", "uniform", "eps", 0.03),
    ("ipndm:order=3", "karras", "eps", 0.03),
    ("pfdiff:k=2,l=1", "angle", "eps", None),
    ("ipndm:order=3", "trailing", "x0", None),
    ("ddim", "karras:rho=3", None, 0.08),
    ("ddim", "trailing", None, None),
    ("pfdiff:k=2,l=1", "karras", "eps", 0.03),
    ("ddim", "trailing", None, 0.08),
    ("ddim", "karras", None, None),
    ("ddim", "logsnr", None, None),
    ("ddim", "uniform", None, None),
)
# Before these on a schedule of at most `SHORT` times, where many evaluations come near to the walk over every time.
SHORT_RIVALS: tuple[Rival, ...] = (
    ("ddim", "karras:rho=3", None, None),
    ("pfdiff:k=1,l=1", "uniform", "eps", None),
)


@final
@dataclass(frozen=True)
class Measured:
    """The best program of an NFE, and the record of the measurement as plain JSON data."""

    program: Program
    record: dict[str, Any]


def measured(source: Network, by_rule: Mapping[int, Program], progress: Stages | None = None) -> dict[int, Measured]:
    """By NFE the best of the rule's program and its rivals; the rule's where the bounds do not pay for rivals.

    Nothing for a network whose conditions have no typical values. Raises InputError when the network fails.
    """
    if not has_typical_inputs(source.contract):
        return {}
    meter = Meter(source, progress)
    plans = {nfe: {None: program, **_rivals(program)} for nfe, program in sorted(by_rule.items())}
    reference = reference_of(by_rule[min(by_rule)])
    expected = reference.nfe + sum(nfe * len(plan) for nfe, plan in plans.items())
    found = {nfe: Measured(one, _record([one], [math.inf], 0, 0, reference, meter)) for nfe, one in by_rule.items()}
    looks: dict[int, Look] = {}
    truth, doubt, seeds = None, 0.0, 0
    try:
        seeds = meter.fit(min(expected, CALLS))
        meter.expected = min(expected, meter.calls + meter.left)
        if meter.left < reference.nfe + 2 * min(plans):
            return found
        truth = meter.sample(reference)
        doubt = _doubt(reference, truth, meter, sum(plans))
        best_first: list[Rival | None] = []  # of the last NFE
        for nfe, plan in plans.items():
            left = meter.left
            share = max(2, left // sum(later for later in plans if later >= nfe))  # no later NFE is left out
            if not best_first:
                share = max(share, min(len(plan), left // (2 * nfe)))
            names = _first(plan, best_first)[: min(share, left // nfe)]
            if len(names) < 2:
                continue
            look = Look([plan[name] for name in names], [meter.sample(plan[name]) for name in names])
            looks[nfe] = look
            best_first = [names[i] for i in np.argsort(look.errors(truth))]
        reference, truth, doubt = finer(reference, truth, doubt, looks, meter, _like)
        for look in looks.values():
            on_further_grids(look, truth, meter, _like)
    except SpentError:
        pass
    if truth is not None:
        found |= {nfe: _best(look, truth, doubt, seeds, reference, meter) for nfe, look in looks.items()}
    return found


def _best(look: Look, truth: Tensor, doubt: float, seeds: int, reference: Program, meter: Meter) -> Measured:
    """The best of one NFE, and the record."""
    squares = [_squares(one, truth) for one in look.samples]
    errors = [math.sqrt(one.mean()) for one in squares]
    best = int(np.argmin(errors))
    best = best if _is_better(squares[best], squares[0]) else 0
    best = _or_ddim(look.programs, errors, best, doubt)
    record = _record(look.programs, errors, best, seeds, reference, meter)
    return Measured(look.programs[best], {**record, "doubt": doubt})


def is_remembered(record: Any, by_rule: Program, held: Program | None) -> bool:
    """Whether the record of an engine is of a measurement with this rule, and `held` what it found."""
    return (
        isinstance(record, dict)
        and held is not None
        and record.get("rule") == by_rule.digest
        and record.get("program") == held.digest
    )


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


def _rivals(program: Program) -> dict[Rival, Program]:
    process, found = parse_schedule(program.schedule), {}
    latest = default_start(program.schedule, program.prediction, program.clip)
    short = process.discrete and latest - process.first < SHORT
    for rival in (*SHORT_RIVALS, *RIVALS) if short else RIVALS:
        solver, grid, basis, alpha = rival
        start = latest if alpha is None else min(latest, time_of_alpha(process, alpha))
        try:
            found[rival] = _like(program, program.nfe, solver, grid, basis, start)
        except InputError:  # a short schedule, too few times
            continue
    return found


def _first(plan: Mapping[Rival | None, Program], best_first: Sequence[Rival | None]) -> list[Rival | None]:
    """The rule, the best of DDIM before, the other solvers, which gain with the evaluations, the rest of DDIM."""
    before = [name for name in best_first if name is not None and name[0] == "ddim" and name in plan][:KEPT_DDIM]
    rest = [name for name in plan if name is not None and name not in before]
    others = [name for name in rest if name[0] != "ddim"] if best_first else rest
    return [None, *before, *others, *(name for name in rest if name not in others)]


def reference_of(program: Program) -> Program:
    """A short schedule is walked whole with DDIM, as in `tune`.

    Elsewhere an error below 0.01 on every network of the study: Karras sigmas where x0 is sensitive, else even times.
    A network that predicts x0 walks even log-SNR in x0: what is smooth in x0 is far from it in eps at the noisy end.
    """
    process = parse_schedule(program.schedule)
    start = default_start(program.schedule, program.prediction, program.clip)
    every = int(start - process.first) + 1
    if process.discrete and every <= SHORT:
        return _like(program, every, "ddim", "uniform", None, start)
    if program.prediction == "x0" and math.isfinite(float(process.lam(start))):
        return _like(program, REFERENCE_NFE, REFERENCE, "logsnr", "x0", start)
    wide = process.prior_scale(start) > 1 or (program.prediction == "eps" and process.velocity != "flow")
    basis = "v" if process.velocity == "flow" else "eps"
    if process.velocity != "flow" and float(process.alpha(start)) == 0:
        basis = "x0"
    return _like(program, REFERENCE_NFE, REFERENCE, "karras" if wide else "uniform", basis, start)


def _squares(found: Tensor, truth: Tensor) -> NDArray[np.float64]:
    """Of each seed the mean square error, float64 [seeds]; infinite where a sample is not finite."""
    squares = (found.double() - truth.double()).square().flatten(1).mean(1).numpy()
    return np.where(np.isfinite(squares), squares, math.inf)


def _doubt(reference: Program, truth: Tensor, meter: Meter, evaluations: int) -> float:
    """How far the reference may be off: half of its distance to one of half the evaluations.

    0 for a walk over every time, and where the calls would be missed for the samplers.
    """
    half = reference.nfe // 2
    if reference.solver != REFERENCE or meter.left - half < FEW_SAMPLERS * evaluations:
        return 0.0
    coarse = _like(reference, half, REFERENCE, str(reference.grid), reference.basis, reference.times[0])
    found = math.sqrt(_squares(meter.sample(coarse), truth).mean()) / 2
    return found if math.isfinite(found) else 0.0


def _or_ddim(plan: Sequence[Program], errors: Sequence[float], best: int, doubt: float) -> int:
    """The best, or DDIM where it may as well be DDIM: two errors to a reference differ by its own at most."""
    of_ddim = [i for i, one in enumerate(plan) if one.solver == "ddim"]
    nearest = min(of_ddim, key=lambda i: errors[i], default=best)
    return nearest if errors[nearest] - errors[best] < doubt else best


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
    plan: Sequence[Program], errors: Sequence[float], best: int, seeds: int, reference: Program, meter: Meter
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
