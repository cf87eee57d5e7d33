"""`precision="auto"`: the fastest precision on this machine whose added error stays within the bound.

Each candidate that the machine has arithmetic for becomes an engine, which is opened as `load` would, and samples. The
libraries take turns, as in engine/backends/fastest.py. On a CPU the candidates are fp32, bf16, fp16 and int8; on a GPU
fp8 too, where it has that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from ...engine.backends.registry import is_installed
from ...engine.errors import BackendError, InputError, first_line
from ..choice.measured_choice import reference_of
from .added import Added, said
from .calibration.given import Given
from .calibration.observations import Observations
from .prompts import Texts
from .tasks import ELEMENTS, HALF, MOST_SMALL, rows_of
from .trajectory import CHECK_SEED, Array, Trajectories, untypical

if TYPE_CHECKING:
    from ...engine.api import Engine
    from ...engine.artifact import Artifact
    from ...engine.progress import Lines

AUTO = "auto"
CANDIDATES = ("fp32", "bf16", "fp16", "int8", "fp8")  # each expected to be no slower than those before
GAIN = 0.95  # a precision takes the place of a wider one when its time is below this part of the wider one's
SEEDS = 16  # whose samples are compared, where no engine was measured by more or fewer: its bound is then this one
TURNS, TURN_S, QUIET_S = 5, 0.2, 0.05


@final
@dataclass(frozen=True, eq=False)
class Fastest:
    """The precision, its finished engine, and the record of all."""

    precision: str
    artifact: Artifact
    record: dict[str, Any]


def fastest(
    make: Callable[[str, Path], Artifact],
    open_engine: Callable[[Artifact], Engine],
    runs: Callable[[str], str],
    folder: Path,
    bound: float | None,
    given: Given,
    say: Lines,
) -> Fastest:
    """The fastest candidate. make(precision, place) writes an engine, runs(precision) is why it cannot run here, or "".

    Engines are written into `folder`. given: what conditions have. Raises InputError, BackendError: fp32 itself fails.
    """
    made: dict[str, Artifact] = {}
    left_out: list[str] = []
    with ExitStack() as stack:
        engines: dict[str, Engine] = {}
        for precision in CANDIDATES:
            if why := runs(precision):
                left_out.append(f"{precision}: {why}")
                continue
            try:
                artifact = make(precision, folder / f"{precision}.engine")
                engines[precision] = stack.enter_context(open_engine(artifact))
                made[precision] = artifact
            except (InputError, BackendError) as error:
                if precision == "fp32":
                    raise
                left_out.append(f"{precision}: {first_line(error)}")
        first = made["fp32"]
        tables = _tables(first, given)
        if untypical(first.contract, tables):
            raise InputError(
                "precision auto compares samples, and a condition has no default or labels to sample with; "
                "give values of it, or a policy's observations (calibrate_conditions), or name a precision"
            )
        samples, trial = _samples(engines, first, tables, _seeds(made), left_out)
        bounds, own = _bounds(open_engine, first, trial, samples["fp32"], bound)
        times = _times(engines, first, tables)
    errors = {
        name: {nfe: trial.added(found[nfe], samples["fp32"][nfe], bounds[nfe]) for nfe in found}
        for name, found in samples.items()
    }
    chosen = _chosen(errors, times)
    for line in [*left_out, *_lines(times, errors, chosen)]:
        say(line)
    record = {
        "chosen": chosen,
        "milliseconds": times,
        "added": {name: {str(nfe): value.error for nfe, value in one.items()} for name, one in errors.items()},
        "standard_error": {
            name: {str(nfe): value.deviation for nfe, value in one.items()} for name, one in errors.items()
        },
        "bound": {str(nfe): value for nfe, value in bounds.items()},
        "own": {str(nfe): value for nfe, value in own.items()},
        "left_out": left_out,
        "batch": first.batch[0],
    }
    return Fastest(chosen, made[chosen], record)


def _tables(first: Artifact, given: Given) -> dict[str, Array]:
    """By condition [m, *shape]: of prompts and observations by the float32 engine's encoders, and as given."""
    found: dict[str, Array] = {}
    if first.text_encoders is not None:
        found |= Texts(first.path, first.text_encoders, given.prompts).tables(first.contract)
    if first.policy is not None and given.observations:
        found |= Observations(first.path, first.policy, given.observations).tables(first.contract)
    return found | dict(given.conditions)


def why_slow(precision: str, *, on_gpu: bool) -> str:
    """Why a CPU gains nothing from a precision that it can run, in one clause; empty when it may."""
    if on_gpu:
        return ""
    if precision == "fp8":
        return "a CPU has no float8 arithmetic"
    if precision in ("fp16", "bf16"):
        if not is_installed("openvino"):
            return f"openvino, which has {precision} on a CPU, is not installed"
        from ...engine.backends.openvino_cpu import cpu_precisions

        return "" if precision in cpu_precisions() else f"this CPU has no {precision} arithmetic"
    return ""


def _seeds(made: Mapping[str, Artifact]) -> int:
    """As many as int8 or fp8 was checked on, so that its bound here is the bound that its layers were chosen by."""
    counts = [one.provenance.get("precision_record", {}).get("calibration_seeds", 0) for one in made.values()]
    small = min(MOST_SMALL, math.ceil(ELEMENTS / math.prod(made["fp32"].contract.shape)))
    return max(counts) or max(SEEDS, small)


def _samples(
    engines: dict[str, Engine], first: Artifact, tables: Mapping[str, Array], count: int, left_out: list[str]
) -> tuple[dict[str, dict[int, Array]], Trajectories]:
    """Of every engine by NFE. One whose samples fail, such as by values that are not finite, leaves `engines`."""
    contract = first.contract
    trial = Trajectories.of(
        contract, CHECK_SEED, count, clips=first.decoder is None, tables=rows_of(tables, check=True)
    )
    found: dict[str, dict[int, Array]] = {}
    for name, engine in list(engines.items()):
        try:
            found[name] = {nfe: _sample(engine, trial, nfe) for nfe in first.programs}
        except (InputError, BackendError) as error:
            if name == "fp32":
                raise
            left_out.append(f"{name}: {first_line(error)}")
            del engines[name]
    return found, trial


def _sample(engine: Engine, trial: Trajectories, nfe: int) -> Array:
    names = [one.name for one in trial.contract.conditions]
    given: dict[str, Any] = dict(zip(names, trial.conditions, strict=True))
    return engine.sample(seeds=list(trial.seeds), nfe=nfe, **given).float().cpu().numpy().copy()


def _bounds(
    open_engine: Callable[[Artifact], Engine],
    first: Artifact,
    trial: Trajectories,
    exact: Mapping[int, Array],
    bound: float | None,
) -> tuple[dict[int, float], dict[int, float]]:
    """By NFE what may be added, and the sampler's own error to many evaluations."""
    own: dict[int, float] = {}
    for nfe, program in first.programs.items():
        reference = reference_of(program)
        with open_engine(replace(first, programs={reference.nfe: reference})) as engine:
            own[nfe] = trial.distance(exact[nfe], _sample(engine, trial, reference.nfe))
    return {nfe: HALF * error if bound is None else bound for nfe, error in own.items()}, own


def _times(engines: Mapping[str, Engine], first: Artifact, tables: Mapping[str, Array]) -> dict[str, float]:
    """Milliseconds of a sample of the smallest batch and fewest evaluations, the least of several turns."""
    nfe, size = min(first.programs), first.batch[0]
    trial = Trajectories.of(first.contract, CHECK_SEED, size, tables=tables)
    times = dict.fromkeys(engines, np.inf)
    for name in [*engines] * TURNS:
        time.sleep(QUIET_S)
        end = time.perf_counter() + TURN_S
        while True:
            start = time.perf_counter()
            _sample(engines[name], trial, nfe)
            now = time.perf_counter()
            times[name] = min(times[name], 1e3 * (now - start))
            if now > end:
                break
    return {name: float(value) for name, value in times.items()}


def _chosen(errors: Mapping[str, Mapping[int, Added]], times: Mapping[str, float]) -> str:
    """The fastest whose errors are within the bounds; a precision takes the place of those before by GAIN or more."""
    chosen = "fp32"
    for name, found in errors.items():
        if _fits(found) and times[name] < GAIN * times[chosen]:
            chosen = name
    return chosen


def _fits(found: Mapping[int, Added]) -> bool:
    return all(one.error <= one.bound for one in found.values())


def _lines(times: Mapping[str, float], errors: Mapping[str, Mapping[int, Added]], chosen: str) -> list[str]:
    lines: list[str] = []
    before = ""
    for name, ms in times.items():
        added = ", ".join(f"NFE {nfe} {said(one.record)} (bound {one.bound:.2g})" for nfe, one in errors[name].items())
        line = f"{name}: {ms:.3g} ms a sample" + (f", RMS added {added}" if name != "fp32" else "")
        if before and ms > times[before]:
            line += f"; slower here than {before}"
        if not _fits(errors[name]):
            line += "; beyond the bound"
        lines.append(line)
        before = name
    fitting = [name for name in times if _fits(errors[name])]
    least = min(fitting, key=lambda name: times[name])
    if times[least] < times[chosen]:
        return [*lines, f"precision {chosen}: {least} is faster by less than {1 - GAIN:.0%}, at fewer bits"]
    return [*lines, f"precision {chosen}: the fastest here whose added error stays within the bound"]
