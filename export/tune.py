"""`tune`: the best few-step sampler of a network for one NFE, found in minutes.

    ranking = pfdiff.tune("unet.onnx", nfe=8)          # ranking[0].solver, .grid, .basis, .t_start, .error, .program

What is made small is the distance to the network's own many-step samples of the same seeds, which takes no data, or
with metric="fd" the Frechet distance to real pictures. The search is in engine/search.py, the polishing of the winner's
coefficients in engine/refine.py; here both meet a network, a cache and an engine directory.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from ..engine.artifact import read_artifact, write_manifest
from ..engine.backends.abstract import Backend
from ..engine.candidates import Setting, all_candidates
from ..engine.errors import InputError
from ..engine.pool import Budget, BudgetSpentError
from ..engine.program import Program
from ..engine.reference import Reference
from ..engine.refine import Refinement, Step, finished
from ..engine.search import Judge, Progress, Search, Trial
from .black_box import Subject
from .build import build
from .distance_judge import RealPictures, Sampler, check_pictures, make_distance_judge
from .judging import chosen_seeds, make_judge, make_setting
from .search_cluster import crew
from .sources import Network

if TYPE_CHECKING:
    from torch import nn

# Seeds that refining fits and watches. A few seeds carry most of the error, so it needs more than ranking does: with 32
# the MNIST network at 8 NFE came to 0.023 on the training seeds and 0.047 on others.
TRAINING, VALIDATION = 96, 32
STEPS = 20  # of Levenberg-Marquardt at most; it stops by itself
RECORDED = 10  # of the ranking, in the engine's record
SEEDS = {"error": (16, 32), "fd": (512, 512)}  # calibration and held-out ones by metric
FEWEST_OF_FD = 16  # calibration seeds: the search begins with an eighth, and one sample has no distance


@final
@dataclass(frozen=True, eq=False)
class Ranked:
    """One sampler of the ranking.

    solver, grid, basis, t_start, clip: as `pfdiff.compile` takes them; a refined program's solver ends in " refined".
    error: on the calibration seeds, RMS distance to the reference, clipped to the data's range, or what the ranking's
    `criterion` says. held_out_error: on seeds that chose nothing, None where it was not measured. program: the table.
    """

    solver: str
    grid: str | tuple[float, ...]
    basis: str
    t_start: float
    clip: float | None
    error: float
    held_out_error: float | None
    program: Program


@final
class Ranking(list[Ranked]):
    """Best first. Beside the samplers:

    nfe, calibration, held_out   evaluations of a sample; numbers of seeds
    criterion                    what the errors are, in words
    reference                    solver, grid and evaluations of the reference, None when errors are distances to data
    evaluations, cached          samples through the network once, all in all; of these read from the cache
    seconds                      wall-clock
    complete                     False when the budget ended the search early
    refinement                   None, or {"from": .., "training": [..], "validation": [..], "kept": bool, ..}
    """

    def __init__(self, ranked: Sequence[Ranked], **record: Any) -> None:
        super().__init__(ranked)
        self.nfe: int = record["nfe"]
        self.calibration: int = record["calibration"]
        self.held_out: int = record["held_out"]
        self.criterion: str = record["criterion"]
        self.reference: Reference | None = record["reference"]
        self.evaluations: int = record["evaluations"]
        self.cached: int = record["cached"]
        self.seconds: float = record["seconds"]
        self.complete: bool = record["complete"]
        self.refinement: dict[str, Any] | None = record["refinement"]

    def to_dict(self) -> dict[str, Any]:
        """The record of the search as plain JSON data, with the first ten of the ranking."""
        return {
            "nfe": self.nfe,
            "calibration_seeds": self.calibration,
            "held_out_seeds": self.held_out,
            "criterion": self.criterion,
            "reference": vars(self.reference) if self.reference else None,
            "evaluations": self.evaluations,
            "cached_evaluations": self.cached,
            "seconds": round(self.seconds, 2),
            "complete": self.complete,
            "refinement": self.refinement,
            "ranking": [
                {
                    "solver": one.solver,
                    "grid": one.grid,
                    "basis": one.basis,
                    "t_start": one.t_start,
                    "clip": one.clip,
                    "error": one.error,
                    "held_out_error": one.held_out_error,
                }
                for one in self[:RECORDED]
            ],
        }


def tune(
    network: Network | nn.Module | str | Path,
    nfe: int,
    *,
    metric: str = "error",
    pictures: str | os.PathLike[str] | NDArray[Any] | None = None,
    features: str | nn.Module | None = None,
    calibration: int | None = None,
    held_out: int | None = None,
    seed: int = 0,
    solvers: Sequence[str] | None = None,
    grids: Sequence[str] | None = None,
    bases: Sequence[str] | None = None,
    clip: float | None = None,
    t_start: float | None = None,
    end: str | float = "clean",
    conditions: Mapping[str, Any] | None = None,
    reference: int | None = None,
    local: bool = True,
    refine: bool = False,
    budget: int | str | None = None,
    backend: str = "auto",
    threads: int | None = None,
    ray: str | None = None,
    workers: int | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Ranking:
    """Search solver, order, (k, l), grid, basis and start time for `nfe` evaluations; the ranking, best first.

    network: a Network, what Network takes alone, or an engine directory.
    metric: error, the RMS distance to a many-step reference, or fd, the Frechet distance to real `pictures` on
    `features`, both as `pfdiff.evaluate` takes them. A distance of few samples is biased, alike for all candidates.
    calibration, held_out: seeds that choose (16; 512 for fd), and seeds that judge the best afterwards (32; 512).
    seed: which ones.
    solvers, grids, bases: only these. local: also race the neighbours of the best, not the tables alone.
    t_start: the latest start, where the reference starts too; by default the schedule's last time, or for an
    eps-network the last at which its x0 is sound. clip, end: as in `pfdiff.compile`.
    conditions: by name, one value or several that the seeds take in turn; by default each label in turn.
    reference: evaluations of the reference, by default all times of a short schedule, else 200.
    refine: polish the winner's coefficients as well, on seeds of its own.
    budget: evaluations (samples through the network once, the reference included), or a time such as "2min", after
    which the search ends with the best so far. backend, threads: as in `pfdiff.load`, a module by PyTorch.
    ray, workers: for fd of an engine directory, draw on the Ray cluster at this address (local, auto, HOST:PORT).
    out: an engine directory, written or extended with the winner and the record of the search.

    The same arguments give the same ranking, but for a budget in time. What was computed stands in the cache folder,
    so that an interrupted search goes on where it was. Raises InputError, BackendError, EngineFileError.
    """
    calibration, held_out = _checked_seeds(metric, calibration, held_out)
    if metric == "error":
        if pictures is not None or features is not None:
            raise InputError("pictures and features are of metric fd; say metric='fd', or leave them out")
        real = None
    elif pictures is None or features is None or refine or reference is not None:
        raise InputError("metric fd needs pictures and features, and takes neither refine nor reference")
    else:
        real = RealPictures.of(pictures, features)
    subject = Subject.of(network)
    if real:
        check_pictures(subject)
    crew_words = (subject.engine, features) if real and subject.engine and isinstance(features, str) else None
    if ray is not None and crew_words is None:
        raise InputError("ray takes metric fd, an engine directory and features by name; build the engine first")
    setting = make_setting(subject, nfe, clip, t_start, end)
    chosen = Reference.of(setting.schedule, setting.t_start, reference)
    limit = parse_budget(budget)
    tell: Progress = progress or (lambda stage, done, expected: None)

    extra = max(0, TRAINING - calibration) + VALIDATION if refine else 0
    seeds = chosen_seeds(seed, calibration + extra, held_out)
    with ExitStack() as stack:
        if real:
            opened = Sampler.opened(subject, seeds, conditions, real.extractor, backend, threads)
            ahead = None
            if ray is not None and crew_words:
                place = {"backend": backend, "threads": threads, "workers": workers}
                ahead = stack.enter_context(crew(ray, *crew_words, seeds, conditions, **place))
            sampler = stack.enter_context(opened)
            judge = make_distance_judge(subject, sampler, seeds, conditions, real, limit, ahead)
        else:
            opened = stack.enter_context(subject.opened(backend, threads))
            judge = _reference_judge(subject, opened, seeds, conditions, setting, chosen, limit, tell)
        rows = np.arange(len(seeds) - held_out, len(seeds))
        search = Search(judge, setting, calibration, rows, tell)
        trials = search.run(all_candidates(setting, solvers=solvers, grids=grids, bases=bases), seed, local=local)
        if not trials:
            raise InputError(_nothing_found(setting, solvers, grids, bases, limit))
        ranked = [_ranked(trial, setting) for trial in trials]
        refinement = None
        if refine and search.complete and isinstance(judge, Judge):
            ranked, refinement = _refined(judge, ranked, calibration, rows, tell)
    result = Ranking(
        ranked,
        nfe=nfe,
        calibration=calibration,
        held_out=held_out,
        criterion=str(real) if real else f"RMS distance to {chosen.solver} in {chosen.nfe} evaluations",
        reference=None if real else chosen,
        evaluations=limit.spent,
        cached=limit.cached,
        seconds=limit.elapsed,
        complete=search.complete,
        refinement=refinement,
    )
    if out is not None:
        write_winner(subject, result, end, out)
    return result


def _checked_seeds(metric: str, calibration: int | None, held_out: int | None) -> tuple[int, int]:
    """(calibration, held_out) with the metric's own numbers where none is said. Raises InputError."""
    if metric not in SEEDS:
        raise InputError(f"metric {metric!r}, expected one of {', '.join(SEEDS)}")
    usual = SEEDS[metric]
    calibration = usual[0] if calibration is None else calibration
    held_out = usual[1] if held_out is None else held_out
    counts = {"calibration": (calibration, FEWEST_OF_FD if metric == "fd" else 1), "held_out": (held_out, 0)}
    for name, (count, least) in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise InputError(f"{name}={count!r}, expected a number of seeds of at least {least}")
    return calibration, held_out


def _reference_judge(
    subject: Subject,
    opened: Backend,
    seeds: Sequence[int],
    conditions: Mapping[str, Any] | None,
    setting: Setting,
    reference: Reference,
    limit: Budget,
    tell: Progress,
) -> Judge:
    try:
        return make_judge(subject, opened, seeds, conditions, setting, reference, limit, tell)
    except BudgetSpentError:
        most = limit.evaluations if limit.evaluations is not None else f"{limit.seconds:g}s"
        raise InputError(
            f"budget {most} does not pay for the reference of {len(seeds)} seeds in {reference.nfe} evaluations "
            f"({len(seeds) * reference.nfe}); give more, or fewer seeds"
        ) from None


def parse_budget(budget: int | str | None) -> Budget:
    """20000 or "20000" evaluations, "90s", "2min", "1h", None for no limit. Raises InputError."""
    if budget is None:
        return Budget()
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|m|h)?\s*", str(budget))
    number = float(found[1]) if found and not isinstance(budget, bool) else 0.0
    if not found or number <= 0 or (found[2] is None and number != int(number)):
        raise InputError(f"budget {budget!r}, expected a number of evaluations such as 20000, or a time such as 2min")
    if found[2] is None:
        return Budget(evaluations=int(number))
    return Budget(seconds=number * {"s": 1, "m": 60, "min": 60, "h": 3600}[found[2]])


def _ranked(trial: Trial, setting: Setting) -> Ranked:
    one = trial.candidate
    start = setting.t_start if one.t_start is None else one.t_start
    return Ranked(
        trial.program.solver,
        one.grid,
        trial.program.basis,
        start,
        setting.clip,
        trial.error(),
        trial.held_out_error,
        trial.program,
    )


def _nothing_found(setting: Setting, solvers: Any, grids: Any, bases: Any, limit: Budget) -> str:
    if limit.evaluations is not None or limit.seconds is not None:
        return "the budget is spent before one candidate was run; give more"
    asked = f"solvers {solvers or 'all'}, grids {grids or 'all'}, bases {bases or 'all'}"
    return f"no candidate is defined for NFE {setting.nfe} on schedule {setting.schedule} ({asked}); allow more"


# Refinement.
def _refined(
    judge: Judge, ranked: list[Ranked], calibration: int, held_out: np.ndarray, tell: Progress
) -> tuple[list[Ranked], dict[str, Any]]:
    """The ranking with the refined winner in front, unless it is worse on the held-out seeds; and the record."""
    start = ranked[0]
    first = max(TRAINING, calibration)
    training, validation = np.arange(first), np.arange(first, first + VALIDATION)

    def after(step: Step) -> None:
        made, spent = len(step.training) - 1, judge.budget.spent
        tell(f"refining: step {made}, validation error {step.validation[-1]:.4f}", spent, spent)

    step = Refinement(judge, training, validation).run(start.program, STEPS, after)
    program = finished(step.program, start.solver)
    record: dict[str, Any] = {
        "from": start.solver,
        "grid": start.grid,
        "basis": start.basis,
        "steps": max(0, len(step.training) - 1),
        "training_seeds": len(training),
        "validation_seeds": len(validation),
        "training": list(step.training),
        "validation": list(step.validation),
        "held_out_before": start.held_out_error,
        "held_out_after": None,
        "kept": False,
    }
    try:
        error = _error(judge, program, np.arange(calibration))
        held = _error(judge, program, held_out) if len(held_out) else None
    except BudgetSpentError:
        return ranked, record
    record["held_out_after"] = held
    if len(step.training) < 2 or (held is not None and held >= (start.held_out_error or math.inf)):
        return ranked, record
    record["kept"] = True
    better = replace(start, solver=program.solver, error=error, held_out_error=held, program=program)
    return [better, *ranked], record


def _error(judge: Judge, program: Program, rows: np.ndarray) -> float:
    return math.sqrt(judge.square(program, rows) / len(rows))


# The engine.
def write_winner(
    subject: Subject,
    ranking: Ranking,
    end: str | float,
    out: str | os.PathLike[str],
    say: Callable[[str], None] | None = None,
) -> Path:
    """Build or extend the engine at `out` with the best program, its record under provenance "search"; the path.

    Raises InputError, BackendError, EngineFileError.
    """
    best = ranking[0]
    if subject.network is not None:
        solver = best.solver.removesuffix(" refined")
        settings = {"grid": best.grid, "basis": best.basis, "clip": best.clip, "t_start": best.t_start, "end": end}
        with build(subject.network, best.program.nfe, solver, out=out, progress=say, **settings) as engine:
            path = engine.path
    else:
        path = Path(out)
    artifact = read_artifact(path)
    record = {**artifact.provenance.get("search", {}), str(best.program.nfe): ranking.to_dict()}
    write_manifest(
        replace(
            artifact,
            programs={**artifact.programs, best.program.nfe: best.program},
            provenance={**artifact.provenance, "search": record},
        )
    )
    return path
