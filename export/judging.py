"""A network, seeds and a reference become a judge of programs: what `tune` and `compare` both start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..engine.backends.abstract import Backend
from ..engine.cache import ArrayStore, Journal, cache_folder, content_key
from ..engine.candidates import Setting
from ..engine.errors import InputError
from ..engine.noise import noise
from ..engine.pool import Budget, Pool
from ..engine.reference import Reference, default_start, targets
from ..engine.schedule import parse_schedule
from ..engine.search import Judge, Progress
from .black_box import BlackBox, Subject, conditions_of

SEED_STRIDE = 1 << 20  # seeds of one role: calibration from seed * stride, held-out seeds from HELD_OUT above it
HELD_OUT = 1 << 40


def make_setting(subject: Subject, nfe: int, clip: float | None, t_start: float | None, end: str | float) -> Setting:
    """What all candidates share. Raises InputError on what does not fit the network's schedule."""
    contract = subject.contract
    if clip is None and subject.network is not None and subject.network.convention is not None:
        clip = subject.network.convention.clip
    process = parse_schedule(contract.schedule)
    start = default_start(contract.schedule, contract.prediction) if t_start is None else float(t_start)
    process.alpha(start)
    if isinstance(nfe, bool) or not isinstance(nfe, int) or nfe < 1:
        raise InputError(f"nfe={nfe!r}, expected an integer of at least 1")
    return Setting(contract.schedule, nfe, contract.prediction, start, clip, end, contract.sigma_data)


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
