"""`tune`: the best few-step sampler of a network for one NFE, found in minutes.

    ranking = pfdiff.tune("unet.onnx", nfe=8)          # ranking[0].solver, .grid, .basis, .t_start, .error, .program

What is made small is the distance to the network's own many-step samples of the same seeds, which takes no data, or
with metric="fd" the Frechet distance to real pictures. The search is in search/halving.py, the polishing of the
winner's coefficients in refining/refine.py; here both meet a network, a cache and an engine directory.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..engine.artifact import MANIFEST, Artifact, read_artifact, write_manifest
from ..engine.atomic import locked_for_build
from ..engine.compiler.program import Program
from ..engine.errors import InputError
from ..export.build import check_place, extended, refuse_another, write_programs
from ..export.network import Network
from .criteria.distance import RealPictures, Sampler, check_pictures, make_distance_judge
from .criteria.error import chosen_seeds, make_judge, make_setting
from .criteria.on_ray import crew
from .ranking import Ranked, Ranking
from .refining.refine import Refinement, Step, finished
from .sampling.pool import Budget, BudgetSpentError
from .sampling.reference import Reference
from .sampling.subject import Subject
from .search.candidates import Setting, all_candidates
from .search.halving import Criterion, Judge, Progress, Search, Trial

if TYPE_CHECKING:
    from torch import nn

# Seeds that refining fits and watches. A few seeds carry most of the error, so it needs more than ranking does: with 32
# the MNIST network at 8 NFE came to 0.023 on the training seeds and 0.047 on others.
TRAINING, VALIDATION = 96, 32
STEPS = 20  # of Levenberg-Marquardt at most; it stops by itself
SEEDS = {"error": (16, 32), "fd": (512, 512)}  # calibration and held-out ones by metric
FEWEST_OF_FD = 16  # calibration seeds: the search begins with an eighth, and one sample has no distance


def tune(
    network: Network | nn.Module | str | Path,
    nfe: int,
    *,
    metric: str = "error",
    pictures: str | os.PathLike[str] | NDArray[Any] | None = None,
    features: str | nn.Module | None = None,
    scale: tuple[float, float] = (-1.0, 1.0),
    calibration: int | None = None,
    held_out: int | None = None,
    seed: int = 0,
    solvers: Sequence[str] | None = None,
    grids: Sequence[str] | None = None,
    bases: Sequence[str] | None = None,
    clip: float | None = None,
    t_start: float | None = None,
    end: str | float | None = None,
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
    `features` with `scale`, as `pfdiff.evaluate` takes all three. A distance of few samples is biased, alike for all.
    calibration, held_out: seeds that choose (16; 512 for fd), and that judge the best (32; 512). seed: which ones.
    solvers, grids, bases: only these. local: also race the neighbours of the best, not the tables alone.
    t_start: the latest start, where the reference starts too; by default the schedule's last time, or for an
    eps-network the last at which its x0 is sound. clip, end: by default the scheduler's, or the engine's if all agree.
    conditions: by name, one value or several that the seeds take in turn; by default each label in turn.
    reference: its evaluations, by default all times of a short schedule, else 200. refine: polish the winner's
    coefficients as well, on seeds of its own. backend, threads: as in `pfdiff.load`, a module by PyTorch.
    budget: evaluations (samples through the network once, the reference included), or a time such as "2min".
    ray, workers: for fd of an engine directory, draw on the Ray cluster at this address (local, auto, HOST:PORT).
    out: an engine of this network to extend with the winner and the record of the search, or where to build one.

    The same arguments give the same ranking, but for a budget in time, and an interrupted search goes on where it
    was: what was computed is in the cache folder. Raises InputError, BackendError, EngineFileError.
    """
    calibration, held_out = _checked_seeds(metric, calibration, held_out)
    subject, limit, tell = Subject.of(network), parse_budget(budget), progress or _silent
    setting = make_setting(subject, nfe, clip, t_start, end)
    aim = _aim(metric, pictures, features, scale, setting, refine=refine, reference=reference)
    check_destination(subject, out)
    seeds = chosen_seeds(seed, calibration + (_refining_seeds(calibration) if refine else 0), held_out)
    members = _crew(ray, subject, features, scale, seeds, conditions, backend, threads, workers)
    with _judge(subject, setting, aim, seeds, conditions, limit, tell, members, backend, threads) as judge:
        search = Search(judge, setting, calibration, np.arange(len(seeds) - held_out, len(seeds)), tell)
        result = _searched(search, aim, seed, solvers, grids, bases, local=local, refine=refine, tell=tell)
    write_winner(subject, result, out, lambda line: tell(line, limit.spent, limit.spent))
    return result


# What is checked before any work.
def _silent(stage: str, done: int, expected: int) -> None:
    """No progress shown."""


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


def _refining_seeds(calibration: int) -> int:
    """How many more than the calibration seeds refining needs."""
    return max(0, TRAINING - calibration) + VALIDATION


def _aim(
    metric: str,
    pictures: Any,
    features: str | nn.Module | None,
    scale: tuple[float, float],
    setting: Setting,
    *,
    refine: bool,
    reference: int | None,
) -> RealPictures | Reference:
    """What samples are measured against. Raises InputError."""
    if metric == "error":
        if pictures is not None or features is not None:
            raise InputError("pictures and features are of metric fd; say metric='fd', or leave them out")
        return Reference.of(setting.schedule, setting.t_start, reference)
    if pictures is None or features is None or refine or reference is not None:
        raise InputError("metric fd needs pictures and features, and takes neither refine nor reference")
    return RealPictures.of(pictures, features, scale)


def check_destination(subject: Subject, out: str | os.PathLike[str] | None) -> None:
    """Whether what is found for the subject may be written to `out`, which is read only.

    Raises InputError when an engine of another network is there, EngineFileError when it is damaged, or missing where
    the subject is an engine.
    """
    if out is None:
        return
    if subject.engine is not None:
        if _identity(read_artifact(out)) != _identity(read_artifact(subject.engine, verify=False)):
            raise InputError(
                f"out '{out}' holds another network or schedule than '{subject.engine}'; write into that engine, or "
                "tune this one"
            )
    elif subject.network is not None and (check_place(Path(out)) / MANIFEST).exists():
        refuse_another(read_artifact(out), subject.network)


def _identity(artifact: Artifact) -> tuple[Any, ...]:
    """Equal for engines that a program serves alike: of one network, in any precision."""
    held = artifact.provenance
    if "network_digest" in held:
        return held["network_digest"], held.get("decoder_digest"), artifact.contract.schedule
    return artifact.contract, artifact.files


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


# Who judges.
def _crew(
    ray: str | None,
    subject: Subject,
    features: str | nn.Module | None,
    scale: tuple[float, float],
    seeds: Sequence[int],
    conditions: Mapping[str, Any] | None,
    backend: str,
    threads: int | None,
    workers: int | None,
) -> AbstractContextManager[Any]:
    """Who draws for metric fd ahead of time, None without ray. Raises InputError."""
    if ray is None:
        return nullcontext()
    if subject.engine is None or not isinstance(features, str):
        raise InputError("ray takes metric fd, an engine directory and features by name; build the engine first")
    place = {"backend": backend, "threads": threads, "workers": workers, "scale": scale}
    return crew(ray, subject.engine, features, seeds, conditions, **place)


@contextmanager
def _judge(
    subject: Subject,
    setting: Setting,
    aim: RealPictures | Reference,
    seeds: Sequence[int],
    conditions: Mapping[str, Any] | None,
    limit: Budget,
    tell: Progress,
    members: AbstractContextManager[Any],
    backend: str,
    threads: int | None,
) -> Iterator[Criterion]:
    """The distance to real pictures or to the reference, with the subject's network, closed at the end."""
    if isinstance(aim, RealPictures):
        check_pictures(subject)
        opened = Sampler.opened(subject, seeds, conditions, aim.extractor, backend, threads)
        with members as ahead, opened as sampler:
            yield make_distance_judge(subject, sampler, seeds, conditions, aim, limit, ahead)
        return
    with subject.opened(backend, threads) as running:
        try:
            judge = make_judge(subject, running, seeds, conditions, setting, aim, limit, tell)
        except BudgetSpentError:
            most = limit.evaluations if limit.evaluations is not None else f"{limit.seconds:g}s"
            raise InputError(
                f"budget {most} does not pay for the reference of {len(seeds)} seeds in {aim.nfe} evaluations "
                f"({len(seeds) * aim.nfe}); give more, or fewer seeds"
            ) from None
        yield judge


# What is found.
def _searched(
    search: Search,
    aim: RealPictures | Reference,
    seed: int,
    solvers: Sequence[str] | None,
    grids: Sequence[str] | None,
    bases: Sequence[str] | None,
    *,
    local: bool,
    refine: bool,
    tell: Progress,
) -> Ranking:
    """Run the search, and refine its winner. Raises InputError when there is none, or its samples are not finite."""
    judge, setting, limit = search.judge, search.setting, search.judge.budget
    trials = search.run(all_candidates(setting, solvers=solvers, grids=grids, bases=bases), seed, local=local)
    if not trials:
        raise InputError(_nothing_found(setting, solvers, grids, bases, limit))
    if not math.isfinite(trials[0].error()):
        raise InputError(
            f"no candidate for NFE {setting.nfe} has a finite error: the network gives all, or the reference, NaN "
            "or infinity; start later (t_start, --t-start), clip x0 (clip, --clip 1), or repair the network"
        )
    ranked, refinement = [_ranked(trial, setting) for trial in trials], None
    if refine and search.complete and isinstance(judge, Judge):
        ranked, refinement = _refined(judge, ranked, search.calibration, search.held_out, tell)
    reference = aim if isinstance(aim, Reference) else None
    return Ranking(
        ranked,
        nfe=setting.nfe,
        calibration=search.calibration,
        held_out=len(search.held_out),
        criterion=f"RMS distance to {reference.solver} in {reference.nfe} evaluations" if reference else str(aim),
        reference=reference,
        evaluations=limit.spent,
        cached=limit.cached,
        seconds=limit.elapsed,
        complete=search.complete,
        refinement=refinement,
    )


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
    subject: Subject, ranking: Ranking, out: str | os.PathLike[str] | None, say: Callable[[str], None]
) -> None:
    """Build or extend the engine at `out` with the best program, its record under provenance "search".

    Raises InputError, EngineFileError.
    """
    if out is None:
        return
    programs, search = {ranking.nfe: ranking[0].program}, {ranking.nfe: ranking.to_dict()}
    if subject.network is not None:
        write_programs(check_place(Path(out)), subject.network, programs, search=search, say=say)
    else:
        with locked_for_build(Path(out), say):
            check_destination(subject, out)
            write_manifest(extended(read_artifact(out), programs, search))
