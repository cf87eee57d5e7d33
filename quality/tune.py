"""`tune`: the best few-step sampler of a network for one NFE, found in minutes.

    ranking = pfdiff.tune("unet.onnx", nfe=8)          # ranking[0].solver, .grid, .basis, .t_start, .error, .program

What is made small is the distance to the network's own many-step samples of the same seeds, which takes no data, or
with metric="fd" the Frechet distance to real pictures, or what a function of one's own says. The search is in
search/halving.py, the polishing of the winner's coefficients in refining/refine.py; here both meet a network, a cache
and an engine directory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..engine.compiler.program import MOST_BUFFERS
from ..engine.contract.seed_conditions import conditions_of
from ..engine.errors import InputError
from ..engine.progress import Stages
from ..export.network import Network
from .criteria.cost import Cost, Function, cost_criterion
from .criteria.distance import FeatureSampler, check_pictures, make_distance_criterion
from .criteria.error import ErrorCriterion, make_error_criterion
from .criteria.on_ray import crew
from .distances.real_pictures import RealPictures
from .perceptual.named import beside_filters, features_of_pictures
from .ranking import Ranked, Ranking
from .refining.dense import fits
from .refining.options import Refining
from .refining.polish import FEWEST as FEWEST_REFINING
from .refining.polish import refined, sized, usual_cost
from .refusals import LEAST_RUNS, check_asked, check_grids, no_refining, nothing_found, too_few_to_fit, too_little
from .sampling.budget import Budget, BudgetSpentError, parse_budget
from .sampling.reference import FEW, Reference
from .sampling.seeds import chosen_seeds
from .sampling.subject import Subject, speed_of
from .search.candidates import Setting, all_candidates, default_candidate, make_setting
from .search.criterion import Criterion
from .search.guard import guarded
from .search.halving import Search, Trial
from .search.left_out import left_out
from .search.pace import pace_of, plan_line
from .search.prior import in_order
from .search.reference_grids import ReferenceGrids
from .stored import against_stored, evaluations_of, stored_program
from .winner import check_destination, write_winner

if TYPE_CHECKING:
    from torch import nn

METRICS = ("error", "fd")
FOR_SEARCH = 0.45  # of a budget, where refining has the rest
FOR_LONE_SEARCH = 0.6  # where refining is regression alone
SEEDS = {"error": (16, 32), "fd": (512, 512), "cost": (64, 128)}  # calibration and held-out ones by metric
FEWEST = 4  # seeds of either kind that a small budget leaves
Aim = RealPictures | Reference | Cost  # what samples are judged by
FEWEST_OF_FD = 16  # calibration seeds: the search begins with an eighth, and one sample has no distance


def tune(
    network: Network | nn.Module | str | Path,
    nfe: int,
    *,
    metric: str = "error",
    pictures: str | os.PathLike[str] | NDArray[Any] | None = None,
    features: str | nn.Module | None = None,
    scale: tuple[float, float] = (-1.0, 1.0),
    criterion: Function | str | None = None,
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
    buffers: int | None = None,
    budget: int | str | None = None,
    backend: str = "auto",
    threads: int | None = None,
    ray: str | None = None,
    workers: int | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: Stages | None = None,
) -> Ranking:
    """Search solver, order, (k, l), grid, basis and start time for `nfe` evaluations; the ranking, best first.

    network: a Network, what Network takes alone, or an engine directory.
    buffers: of a refined program, at most; by default as many as the whole table takes, up to 8.
    metric: error, the RMS distance to a many-step reference, or fd, the Frechet distance to real `pictures` on
    `features` with `scale`, as `pfdiff.evaluate` takes all three. A distance of few samples is biased, alike for all.
    criterion: in place of a metric, a function or "module.py:function", see criteria/cost.py: what it returns for an
    engine, an NFE and seeds is made small. Solvers that draw noise are no candidates of error: it has no meaning then.
    calibration, held_out: seeds that choose (16; 512 for fd, 64 for a criterion), and that judge the best (32; 512,
    128). seed: which ones.
    solvers, grids, bases: only these. local: also race the neighbours of the best, not the tables alone.
    t_start: the latest start, where the reference starts too; by default the schedule's last time, or for an
    eps-network the last at which its x0 is sound. clip, end: by default the scheduler's, or the engine's if all agree.
    conditions: by name, one value or several that the seeds take in turn; by default each label in turn.
    reference: its evaluations, by default all times of a short schedule, else 36, or 72 where these are too inexact.
    refine: polish the winner's coefficients as well, on seeds of its own: for the error, or where `features` are given
    (as `pfdiff.evaluate` takes them, or "filters", which need no network) for them beside pixels; with `pictures` so
    that the features are distributed as theirs. backend, threads: as in `pfdiff.load`, a module by PyTorch.
    budget: evaluations (samples through the network once, the reference included), or a time such as "2min".
    ray, workers: for fd of an engine directory, draw on the Ray cluster at this address (local, auto, HOST:PORT).
    out: an engine of this network to extend with the winner and the record of the search, or where to build one. A
    program of as many evaluations that it holds is judged on the same seeds and kept where it is better.

    The same arguments give the same ranking, but for a budget in time, and an interrupted search goes on where it
    was: what was computed is in the cache folder. Raises InputError, BackendError, EngineFileError.
    """
    if metric not in METRICS:
        raise InputError(f"metric {metric!r}, expected one of {', '.join(METRICS)}")
    if criterion is not None and metric != "error":
        raise InputError("got a metric and a criterion, expected one of them")
    if buffers is not None and not refine:
        raise InputError("buffers is of refine; say refine=True too, or leave it out")
    metric = metric if criterion is None else "cost"
    limit, tell = parse_budget(budget), progress or (lambda stage, done, expected: None)
    subject = Subject.of(network)
    if limit.seconds is not None and metric == "error":
        limit.assumed = speed_of(subject, conditions, backend, threads)
    calibration, held_out = _checked_seeds(metric, calibration, held_out, limit)
    check_asked(nfe, solvers or (), reference)
    check_grids(grids or (), subject)
    setting = replace(make_setting(subject, nfe, clip, t_start, end), draws=metric != "error")
    aim = _aim(metric, pictures, features, scale, criterion, setting, refine=refine, reference=reference)
    check_destination(subject, out)
    stored, refining = stored_program(out, setting), None
    if refine and isinstance(aim, Reference):
        words = (features, pictures, scale, buffers, backend)
        refining = _refining(subject, nfe, calibration, held_out, limit, aim, *words)
    own = 0 if refining is None else refining.training - calibration + refining.validation
    seeds = chosen_seeds(seed, calibration + own, held_out)
    if refining is not None and refining.by_gradient:
        refining = replace(refining, conditions=tuple(conditions_of(subject.contract, conditions, seeds)))
    members = _crew(ray, subject, features, scale, seeds, conditions, backend, threads, workers)
    try:
        paths = 0 if refining is None else refining.training
        with _criterion(
            subject, setting, aim, seeds, conditions, limit, tell, members, backend, threads, paths
        ) as judged:
            search = Search(judged, setting, calibration, np.arange(len(seeds) - held_out, len(seeds)), tell)
            only = (solvers, grids, bases)
            with limit.reserving(evaluations_of(stored, calibration, held_out)):
                result = _searched(search, aim, seed, only, local=local, refining=refining, tell=tell)
            result = against_stored(result, stored, search, out)
    except BudgetSpentError:  # before the search, which ends with what it has
        assert isinstance(aim, Reference)
        own = max(own, sum(FEWEST_REFINING)) if refining is not None and refining.validation else 0
        raise InputError(too_little(limit, aim, len(seeds), own)) from None
    write_winner(subject, result, out, lambda line: tell(line, limit.spent, limit.spent))
    return result


# What is checked before any work.
def _checked_seeds(metric: str, calibration: int | None, held_out: int | None, limit: Budget) -> tuple[int, int]:
    """(calibration, held_out) with the metric's own numbers where none is said. Raises InputError.

    A small budget of evaluations has fewer, so that the reference takes no more than a third of it.
    """
    usual = SEEDS[metric]
    if metric == "error" and limit.affords():
        most = limit.affords() // (10 * FEW)
        usual = (min(usual[0], max(FEWEST, most)), min(usual[1], max(FEWEST, most * 5 // 4)))
    calibration = usual[0] if calibration is None else calibration
    held_out = usual[1] if held_out is None else held_out
    counts = {"calibration": (calibration, FEWEST_OF_FD if metric == "fd" else 1), "held_out": (held_out, 0)}
    for name, (count, least) in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise InputError(f"{name}={count!r}, expected a number of seeds of at least {least}")
    return calibration, held_out


def _aim(
    metric: str,
    pictures: Any,
    features: str | nn.Module | None,
    scale: tuple[float, float],
    criterion: Function | str | None,
    setting: Setting,
    *,
    refine: bool,
    reference: int | None,
) -> Aim:
    """What samples are measured against. Raises InputError."""
    if criterion is not None:
        if pictures is not None or features is not None or refine or reference is not None:
            raise InputError("a criterion takes no pictures, features, reference or refine; leave them out")
        return Cost.of(criterion)
    if metric == "error":
        if (pictures is not None or features is not None) and not refine:
            raise InputError("pictures and features are of metric fd, and of refine; say metric='fd' or refine=True")
        if pictures is not None and features is None:
            raise InputError("pictures without features; give the features that compare samples with them")
        return Reference.of_search(setting.schedule, setting.t_start, setting.prediction, reference)
    if pictures is None or features is None or refine or reference is not None:
        raise InputError("metric fd needs pictures and features, and takes neither refine nor reference")
    return RealPictures.of(pictures, features, scale)


def _refining(
    subject: Subject,
    nfe: int,
    calibration: int,
    held_out: int,
    limit: Budget,
    aim: Reference,
    features: str | nn.Module | None,
    pictures: Any,
    scale: tuple[float, float],
    buffers: int | None,
    backend: str,
) -> Refining:
    """What the refinement may do and compares. Raises InputError."""
    if buffers is not None and (
        isinstance(buffers, bool) or not isinstance(buffers, int) or not 1 <= buffers <= MOST_BUFFERS
    ):
        raise InputError(f"buffers={buffers!r}, expected a number of states from 1 to {MOST_BUFFERS}")
    layers = None if features is None else beside_filters(features, subject.contract, scale)
    real = None
    if pictures is not None and layers is not None:
        real = features_of_pictures(pictures, layers, subject.contract)
    elements = math.prod(subject.contract.shape)
    module = subject.module() if backend in ("auto", "torch") else None
    words = {"perceptual": layers is not None, "whole": fits(nfe, buffers)}
    words |= {"by_gradient": module is not None and (layers is None or layers.differentiable)}
    training, validation = sized(calibration, limit.affords() or None, aim.nfe, elements, nfe, **words)
    if not held_out and not validation:
        raise InputError(
            f"budget {limit} leaves no seeds that judge a refined sampler; give --held-out 4 or a larger budget"
        )
    return Refining(training, validation, buffers, layers, real, module, subject.contract)


# The criterion.
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
def _criterion(
    subject: Subject,
    setting: Setting,
    aim: Aim,
    seeds: Sequence[int],
    conditions: Mapping[str, Any] | None,
    limit: Budget,
    tell: Stages,
    members: AbstractContextManager[Any],
    backend: str,
    threads: int | None,
    paths: int,
) -> Iterator[Criterion]:
    """The distance to real pictures or to the reference, with the subject's network, closed at the end.

    paths: seeds whose way of the reference is kept.
    Raises BudgetSpentError where the reference takes more than the budget.
    """
    if isinstance(aim, Cost):
        with cost_criterion(aim, subject, seeds, limit, backend, threads) as judged:
            yield judged
        return
    if isinstance(aim, RealPictures):
        check_pictures(subject)
        opened = FeatureSampler.opened(subject, seeds, conditions, aim.extractor, backend, threads)
        with members as ahead, opened as sampler:
            yield make_distance_criterion(subject, sampler, seeds, conditions, aim, limit, ahead)
        return
    try:
        usual = default_candidate(setting).compile(setting)
    except InputError:  # not defined for so few times: then the reference is taken as it is
        usual = None
    with subject.opened(backend, threads) as running:
        yield make_error_criterion(subject, running, seeds, conditions, setting, aim, limit, tell, usual, paths)


# What is found.
def _searched(
    search: Search,
    aim: Aim,
    seed: int,
    only: tuple[Sequence[str] | None, Sequence[str] | None, Sequence[str] | None],
    *,
    local: bool,
    refining: Refining | None,
    tell: Stages,
) -> Ranking:
    """Run the search, and refine its winner. Raises InputError when there is none, or its samples are not finite."""
    criterion, setting, limit = search.criterion, search.setting, search.criterion.budget
    solvers, grids, bases = only
    candidates, pace, plan = all_candidates(setting, solvers=solvers, grids=grids, bases=bases), None, None
    skipped: str | None = None
    if isinstance(criterion, ErrorCriterion):
        way = criterion.trajectory
        measured = ReferenceGrids(way).candidates(setting) if way is not None and grids is None else ()
        candidates = in_order(candidates, setting, only, measured)
        left = limit.left()
        elements = criterion.pool.noise.shape[1]
        if refining and not refining.validation and left is not None:
            skipped = too_few_to_fit(limit, setting.nfe, refining.training, elements)
            skipped = no_refining(limit, setting.nfe) if left < LEAST_RUNS * setting.nfe else skipped
            refining = refining if skipped is None else None
        share = 1.0 if refining is None else FOR_SEARCH if refining.validation else FOR_LONE_SEARCH
        pace = pace_of(limit, setting.nfe, search.calibration, len(search.held_out), share)
        cost = 0 if refining is None else usual_cost(refining, setting.nfe, elements)
        plan = plan_line(pace, limit, setting.nfe, cost)
        tell(plan, limit.spent, 0)
    trials = search.run(candidates, seed, local=local, pace=pace, default_first=only == (None, None, None))
    if not trials:
        raise InputError(nothing_found(setting, solvers, grids, bases, spent=not search.complete))
    if not math.isfinite(trials[0].error()):
        raise InputError(
            f"no candidate for NFE {setting.nfe} has a finite error: the network gives all, or the reference, NaN "
            "or infinity; start later (t_start, --t-start), clip x0 (clip, --clip 1), or repair the network"
        )
    trials, guard = guarded(trials)
    ranked: list[Ranked] = [_ranked(trial, setting) for trial in trials]
    refinement: dict[str, Any] | None = None if skipped is None else {"kept": False, "skipped": skipped}
    if refining and search.complete and isinstance(criterion, ErrorCriterion):
        ranked, refinement = refined(criterion, ranked, search.chosen_on, search.held_out, refining, tell)
    reference = criterion.reference if isinstance(criterion, ErrorCriterion) else None
    return Ranking(
        ranked,
        nfe=setting.nfe,
        calibration=search.chosen_on,
        held_out=len(search.held_out),
        criterion=f"RMS distance to {reference.solver} in {reference.nfe} evaluations" if reference else str(aim),
        reference=reference,
        evaluations=limit.spent,
        cached=limit.cached,
        seconds=limit.elapsed,
        complete=search.complete,
        refinement=refinement,
        reference_error=criterion.reference_error if isinstance(criterion, ErrorCriterion) else None,
        plan=plan,
        guard=guard,
        doubt=criterion.doubt if isinstance(criterion, ErrorCriterion) else None,
        left_out=left_out(setting, solvers, grids, bases),
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
