"""What the programs of an engine feed its network, at their own times and with its conditions; errors of whole samples.

    added error = RMS over seeds and elements of clip(sample in fewer bits) - clip(sample in float32)
    own error   = RMS of clip(sample in float32) - clip(sample of many evaluations)

clip: to the range of the data; latents are not clipped. Seeds of calibration and of the check differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from ...engine.compiler.defaults import AUTO, filled
from ...engine.contract.contract import Contract
from ...engine.contract.seed_conditions import condition_tables, rows
from ...engine.errors import InputError
from ...engine.runtime.noise import noise
from ..check import TrialInputs, random_condition
from ..choice.measured_choice import reference_of
from .added import Added

if TYPE_CHECKING:
    from ...engine.compiler.program import Program

Array = NDArray[Any]
Evaluate = Callable[[TrialInputs], Array]

CALIBRATION_SEED, CHECK_SEED = 1 << 42, 1 << 43  # those of `tune` and of the measured choice lie lower
MOST_CLASSES = 23
USUAL_NFE = 8  # of the program by rule, where no engine's programs are given


@final
@dataclass(frozen=True, eq=False)
class Trajectories:
    """Samples of some seeds. clips: whether errors are those of values clipped to the data's range."""

    contract: Contract
    seeds: tuple[int, ...]
    conditions: tuple[Array, ...]
    clips: bool = True

    @staticmethod
    def of(
        contract: Contract, first: int, count: int, *, clips: bool = True, tables: Mapping[str, Array] | None = None
    ) -> Trajectories:
        """`count` seeds from `first` on; a network of a fixed batch takes as many as that.

        tables: by condition [m, *shape], row s mod m for seed s, in place of defaults: of prompts.
        """
        seeds = tuple(range(first, first + (contract.fixed_batch or count)))
        return Trajectories(contract, seeds, _conditions(contract, seeds, tables or {}), clips)

    def of_tables(self, tables: Mapping[str, Array]) -> Trajectories:
        """The same seeds with the conditions of other tables."""
        return replace(self, conditions=_conditions(self.contract, self.seeds, tables))

    def sample(self, program: Program, evaluate: Evaluate, seen: list[TrialInputs] | None = None) -> Array:
        """Samples float32 [seeds, *shape]; the inputs of every evaluation are added to `seen`."""
        contract = self.contract

        def network(x: Array, t: float) -> Array:
            fed = contract.feed_times(np.array([t]))
            times = np.repeat(fed, len(x)) if contract.time_rank else fed[0]
            case = TrialInputs(np.ascontiguousarray(x, np.float32), np.asarray(times), self.conditions)
            if seen is not None:
                seen.append(case)
            return evaluate(case)

        start = noise(self.seeds, contract.shape).numpy()
        return np.asarray(program.evaluate(network, start, self.seeds if program.noises else None))

    def inputs(self, programs: Mapping[int, Program], evaluate: Evaluate) -> list[TrialInputs]:
        """Everything that the programs feed the network, in order."""
        seen: list[TrialInputs] = []
        for program in programs.values():
            self.sample(program, evaluate, seen)
        return seen

    def distance(self, found: Array, wanted: Array) -> float:
        """RMS; infinite where a sample is not finite."""
        return self.added(found, wanted, math.inf).error

    def added(self, found: Array, wanted: Array, bound: float) -> Added:
        """The distance with its standard error; infinite where a sample is not finite."""
        low, high = self.contract.data_range if self.clips else (-math.inf, math.inf)
        if not np.isfinite(found).all():
            return Added(math.inf, bound, None)
        return Added.of(np.clip(found, low, high).astype(np.float64) - np.clip(wanted, low, high), bound)

    def own_error(self, program: Program, evaluate: Evaluate, sample: Array | None = None) -> float:
        """RMS distance of the program's samples to those of many evaluations, in float32."""
        sample = self.sample(program, evaluate) if sample is None else sample
        return self.distance(sample, self.sample(reference_of(program), evaluate))


def usual_programs(contract: Contract) -> dict[int, Program]:
    """The program by rule of a network without an engine. Raises InputError."""
    from ...engine.compiler.compile import compile as compile_program

    words = {"schedule": contract.schedule, "prediction": contract.prediction, "clip": None}
    choice = filled(AUTO, None, None, None, **words, nfe=USUAL_NFE)
    given = (choice.solver, contract.schedule, USUAL_NFE, choice.grid, choice.basis, contract.prediction)
    program = compile_program(*given, None, choice.t_start, "clean", contract.sigma_data)
    contract.feed_times(program.network_times)
    return {USUAL_NFE: program}


def check_typical(contract: Contract, precision: str, tables: Mapping[str, Array]) -> None:
    """Raises InputError when conditions have no values to calibrate with."""
    if missing := untypical(contract, tables):
        raise InputError(
            f"precision {precision} is calibrated on samples, and condition '{missing[0]}' has no default or labels to "
            "sample with; give values of it, or a policy's observations (calibrate_conditions, "
            "--calibrate-conditions FILE), keep a pipeline's text encoders, or build with precision fp16 or bf16"
        )


def untypical(contract: Contract, tables: Mapping[str, Array]) -> list[str]:
    """Names of the conditions that have no values to measure with, in `tables` or of their own."""
    own = {**every_class(contract), **tables}
    return [one.name for one in contract.conditions if one.default is None and not one.labels and one.name not in own]


def every_class(contract: Contract, seeds: int = MOST_CLASSES + 1) -> dict[str, Any]:
    """Every class in turn and the default, which may be none of them: what is not seen would be clipped.

    Of many classes the first, as many as there are seeds beside the default, which has one of them for certain.
    """
    found: dict[str, Any] = {}
    for one in contract.conditions:
        if one.shape or not one.dtype.startswith("int"):
            continue
        if one.labels:
            classes = [*range(len(one.labels))][:MOST_CLASSES]
        elif one.low is not None and one.high is not None:
            classes = [*range(one.low, min(one.high, one.low + MOST_CLASSES - 1) + 1)]
        else:
            continue
        if one.default is not None and (usual := int(np.asarray(one.default))) not in classes:
            classes.append(usual)
        if len(classes) > seeds:
            kept = [] if one.default is None else [int(np.asarray(one.default))]
            classes = [*[each for each in classes if each not in kept][: seeds - len(kept)], *kept]
        found[one.name] = np.array(classes)
    return found


def relative_error(found: Sequence[Array], wanted: Sequence[Array]) -> float:
    """rms(found - wanted) / rms(wanted) over several evaluations; infinite where one is not finite."""
    if not all(np.isfinite(one).all() for one in found):
        return math.inf
    error = sum(float(np.mean(np.square(a.astype(np.float64) - b))) for a, b in zip(found, wanted, strict=True))
    scale = sum(float(np.mean(np.square(b, dtype=np.float64))) for b in wanted)
    return math.sqrt(error / scale) if scale else math.sqrt(error)


def _conditions(contract: Contract, seeds: tuple[int, ...], tables: Mapping[str, Array]) -> tuple[Array, ...]:
    if untypical(contract, tables):
        generator = np.random.default_rng(seeds[0])
        return tuple(random_condition(one, len(seeds), generator) for one in contract.conditions)
    classes = every_class(contract, len(seeds))
    found = rows(condition_tables(contract, {**classes, **tables}), np.array(seeds, np.uint64))
    return tuple(found[one.name] for one in contract.conditions)
