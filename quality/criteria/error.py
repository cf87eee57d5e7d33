"""A network, seeds and a reference become a judge of programs: what `tune` and `compare` both start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...engine.artifact import read_artifact
from ...engine.backends.abstract import Backend
from ...engine.cache import ArrayStore, Journal, cache_folder, content_key
from ...engine.compiler.schedule import parse_schedule
from ...engine.compiler.start import default_start
from ...engine.errors import InputError
from ...engine.runtime.noise import noise
from ...engine.seed_conditions import conditions_of
from ..sampling.pool import Budget, Pool
from ..sampling.reference import Reference, targets
from ..sampling.subject import BlackBox, Subject
from ..search.candidates import Setting
from ..search.halving import Judge, Progress

SEED_STRIDE = 1 << 20  # seeds of one role: calibration from seed * stride, held-out seeds from HELD_OUT above it
HELD_OUT = 1 << 40


def make_setting(
    subject: Subject, nfe: int, clip: float | None, t_start: float | None, end: str | float | None
) -> Setting:
    """What all candidates share; clip and end are by default the subject's own.

    Raises InputError on what does not fit the network's schedule.
    """
    contract = subject.contract
    own_clip, own_end = _own(subject)
    clip, end = own_clip if clip is None else clip, own_end if end is None else end
    process = parse_schedule(contract.schedule)
    start = default_start(contract.schedule, contract.prediction, clip) if t_start is None else float(t_start)
    process.alpha(start)
    if isinstance(nfe, bool) or not isinstance(nfe, int) or nfe < 1:
        raise InputError(f"nfe={nfe!r}, expected an integer of at least 1")
    return Setting(contract.schedule, nfe, contract.prediction, start, clip, end, contract.sigma_data)


def _own(subject: Subject) -> tuple[float | None, str | float]:
    """(clip, end) of the network's scheduler, or what an engine's programs agree on; else no clip, and clean."""
    if subject.engine is not None:
        programs = read_artifact(subject.engine, verify=False).programs.values()
        clips, ends = {one.clip for one in programs}, {one.end for one in programs}
        return clips.pop() if len(clips) == 1 else None, ends.pop() if len(ends) == 1 else "clean"
    convention = subject.network and subject.network.convention
    return (convention.clip, convention.end) if convention else (None, "clean")


def chosen_seeds(seed: int, calibration: int, held_out: int) -> list[int]:
    """Seeds of the two roles, one after the other; other calibration sizes begin with the same seeds."""
    first = seed * SEED_STRIDE
    return [*range(first, first + calibration), *range(HELD_OUT + first, HELD_OUT + first + held_out)]


def make_judge(
    subject: Subject,
    backend: Backend,
    seeds: Sequence[int],
    given: Mapping[str, Any] | None,
    setting: Setting,
    reference: Reference,
    budget: Budget,
    progress: Progress,
) -> Judge:
    """The judge on `seeds`, its targets from the cache or computed now. Raises InputError, BudgetSpentError."""
    contract = subject.contract
    conditions = conditions_of(contract, given, seeds)
    pool = Pool(BlackBox(backend, contract, conditions), noise(seeds, contract.shape).numpy())
    program = reference.compile(
        setting.schedule,
        prediction=setting.prediction,
        clip=setting.clip,
        t_start=setting.t_start,
        sigma_data=setting.sigma_data,
    )
    contract.feed_times(program.network_times)
    keys = [
        content_key(subject.digest, program.digest, seed, *(np.asarray(values[row]) for values in conditions))
        for row, seed in enumerate(seeds)
    ]
    folder = cache_folder()
    expected = budget.spent + program.nfe * len(seeds)
    stage = f"reference: {program.solver} in {program.nfe} evaluations, {len(seeds)} seeds"
    found = targets(
        pool, program, keys, ArrayStore(folder / "reference"), budget, lambda done: progress(stage, done, expected)
    )
    journal = Journal(folder / "search" / f"{subject.digest}.jsonl")
    return Judge(pool, found, subject.sample_range, budget, journal, keys)
