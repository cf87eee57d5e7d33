"""What int8 and fp8 are measured by: whole samples of a network, whole pictures of a decoder."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, final

import numpy as np

from ...engine.contract.contract import Contract, DecoderContract
from ...engine.errors import InputError
from ..check import TrialInputs
from .added import Added
from .quantise import SECONDS_ALONE
from .trajectory import CALIBRATION_SEED, CHECK_SEED, Array, Evaluate, Trajectories

if TYPE_CHECKING:
    from ...engine.compiler.program import Program
    from ...engine.progress import Lines

HALF = 0.5  # of the sampler's own error: what may be added to it
MOST_SEEDS, FEWEST_SEEDS = 24, 2
SECONDS = 60.0  # that the sampler's own error may take: decides how many seeds
# Of small samples, such as actions, 24 say little: so many elements in all, or seeds, as far as they take seconds.
ELEMENTS, MOST_SMALL, SECONDS_SMALL = 16_384, 1024, 5.0
TRIAL = 64  # small samples of the trial that says how long they take
REFERENCE_NFE = 48
PASSES = 24  # of every program, that int8 takes beside the reference; slower ones counted twice
LONG = 600.0  # seconds, from which on it is said how long


@final
class NetworkTask:
    """Samples of the engine's programs. bound: None for half of each program's own error. tables: see trajectory.py.

    Every second row of a table calibrates, the others check. say: gets a line where all of it takes long.
    """

    def __init__(
        self,
        contract: Contract,
        programs: Mapping[int, Program],
        evaluate: Evaluate,
        bound: float | None,
        clips: bool,
        tables: Mapping[str, Array] | None = None,
        say: Lines = lambda line: None,
    ) -> None:
        self.inputs, self.output, self.time = contract.inputs, contract.output, contract.time
        self._programs = programs
        self._tables = tables or {}
        count = seeds_for(contract, programs, evaluate, say)
        self.calibration, self.check = (
            Trajectories.of(contract, first, count, clips=clips, tables=rows_of(self._tables, check=check))
            for first, check in ((CALIBRATION_SEED, False), (CHECK_SEED, True))
        )
        self._exact = {
            check: {nfe: of.sample(program, evaluate) for nfe, program in programs.items()}
            for check, of in ((False, self.calibration), (True, self.check))
        }
        self.own = {
            nfe: self.check.own_error(program, evaluate, self._exact[True][nfe]) for nfe, program in programs.items()
        }
        self.bounds = {nfe: HALF * own if bound is None else bound for nfe, own in self.own.items()}
        for nfe, own in self.own.items():
            if not np.isfinite(own) or self.bounds[nfe] <= 0:
                raise InputError(
                    f"network '{contract.name}': the samples of NFE {nfe} differ from those of many evaluations by "
                    f"{own}, which bounds nothing; give quantise_error (--quantise-error), or check the sampler"
                )

    def cases(self, evaluate: Evaluate) -> list[TrialInputs]:
        return self.calibration.inputs(self._programs, evaluate)

    def others(self, evaluate: Evaluate) -> list[TrialInputs]:
        return self.check.inputs(self._programs, evaluate)

    def errors(self, evaluate: Evaluate, *, check: bool) -> dict[str, Added]:
        of, exact = (self.check, self._exact[True]) if check else (self.calibration, self._exact[False])
        return {
            f"NFE {nfe}": of.added(of.sample(program, evaluate), exact[nfe], self.bounds[nfe])
            for nfe, program in self._programs.items()
        }

    def changed(self, tables: Mapping[str, Array], evaluate: Evaluate) -> dict[int, float]:
        """By NFE how far the check's samples move with the conditions of other tables."""
        of = self.check.of_tables(rows_of({**self._tables, **tables}, check=True))
        return {
            nfe: of.distance(of.sample(program, evaluate), self._exact[True][nfe])
            for nfe, program in self._programs.items()
        }

    def trial(self, evaluate: Evaluate) -> list[TrialInputs]:
        """Inputs of single evaluations of one sample, or of a fixed batch, from a seed of the check."""
        of, nfe = self.check, min(self._programs)
        if not of.contract.fixed_batch:
            of = replace(of, seeds=of.seeds[:1], conditions=tuple(one[:1] for one in of.conditions))
        return of.inputs({nfe: self._programs[nfe]}, evaluate)

    def latents(self, evaluate: Evaluate) -> tuple[Array, Array, Array]:
        """Samples for a decoder: of calibration, of the check, and the check's by many evaluations."""
        from ..choice.measured_choice import reference_of

        nfe = max(self._programs)
        reference = self.check.sample(reference_of(self._programs[nfe]), evaluate)
        return self._exact[False][nfe], self._exact[True][nfe], reference


@final
class DecoderTask:
    """Pictures of latents that the sampler made. bound: None for half of what the sampler's own error makes of them."""

    def __init__(
        self,
        contract: DecoderContract,
        latents: tuple[Array, Array, Array],
        evaluate: Evaluate,
        bound: float | None,
        data_range: tuple[float, float],
    ) -> None:
        self.inputs, self.output, self.time = contract.inputs, contract.output, ""
        self._range = data_range
        self._calibration, self._check, reference = (_cases(one, contract) for one in latents)
        self._exact = {check: self._pictures(evaluate, check) for check in (False, True)}
        truth = np.concatenate([evaluate(case) for case in reference])
        self.own = self._added(self._exact[True], truth, math.inf).error
        self.bound = HALF * self.own if bound is None else bound

    def cases(self, evaluate: Evaluate) -> list[TrialInputs]:
        return self._calibration

    def others(self, evaluate: Evaluate) -> list[TrialInputs]:
        return self._check

    def errors(self, evaluate: Evaluate, *, check: bool) -> dict[str, Added]:
        return {"pictures": self._added(self._pictures(evaluate, check), self._exact[check], self.bound)}

    def _pictures(self, evaluate: Evaluate, check: bool) -> Array:
        return np.concatenate([evaluate(case) for case in (self._check if check else self._calibration)])

    def _added(self, found: Array, wanted: Array, bound: float) -> Added:
        if not np.isfinite(found).all():
            return Added(math.inf, bound, None)
        return Added.of(np.clip(found, *self._range).astype(np.float64) - np.clip(wanted, *self._range), bound)


def rows_of(tables: Mapping[str, Array], *, check: bool) -> dict[str, Array]:
    """Every second row of each table, from its second on for the check; a table of one row whole."""
    return {name: one[int(check) :: 2] if len(one) > 1 else one for name, one in tables.items()}


def _cases(latents: Array, contract: DecoderContract) -> list[TrialInputs]:
    size = contract.fixed_batch or 1
    whole = len(latents) // size * size
    return [TrialInputs(latents[i : i + size], np.empty(0), ()) for i in range(0, whole, size)]


def seeds_for(contract: Contract, programs: Mapping[int, Program], evaluate: Evaluate, say: Lines) -> int:
    """How many seeds the reference takes in the time, by a timed evaluation; a fixed batch is one call."""
    elements = math.prod(contract.shape)
    seconds = _seconds(contract, programs, evaluate, FEWEST_SEEDS)
    if elements * MOST_SEEDS < ELEMENTS and seconds * TRIAL < 1:  # of two seeds a call costs more than the network
        seconds = _seconds(contract, programs, evaluate, TRIAL)
    count = seeds_in(elements, seconds * REFERENCE_NFE * len(programs))
    if (line := length_line(seconds * (contract.fixed_batch or count), programs)) is not None:
        say(line)
    return count


def _seconds(contract: Contract, programs: Mapping[int, Program], evaluate: Evaluate, count: int) -> float:
    """Of an evaluation of a sample, among so many."""
    trial = Trajectories.of(contract, CALIBRATION_SEED, count)
    program = programs[min(programs)]
    start = time.monotonic()
    trial.sample(program, evaluate)
    return (time.monotonic() - start) / program.nfe / len(trial.seeds)


def length_line(seconds: float, programs: Iterable[int]) -> str | None:
    """How long eight bits take, if long. seconds: of an evaluation of all seeds. programs: their NFE."""
    counts = list(programs)
    total = seconds * (REFERENCE_NFE * len(counts) + PASSES * sum(counts))
    if total + SECONDS_ALONE < LONG:
        return None
    return (
        f"eight bits take about {total / 60:.0f} minutes here, and {SECONDS_ALONE / 60:.0f} more or longer if layers "
        "have to be told apart; fp16 and bf16 take a fraction of that"
    )


def seeds_in(elements: int, seconds: float) -> int:
    """How many seeds of samples with so many elements, whose references take so many seconds each."""
    few = min(MOST_SEEDS, SECONDS / max(seconds, 1e-9))
    more = min(MOST_SMALL, math.ceil(ELEMENTS / elements), SECONDS_SMALL / max(seconds, 1e-9))
    return int(max(FEWEST_SEEDS, few, more))
