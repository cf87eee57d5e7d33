"""`network.onnx` of any source in any precision, and the record of what was done.

A module is cast by PyTorch for fp16 and bf16, and a file is written in its own precision. Whatever else is asked for is
made of the float32 graph.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from ...engine.contract.contract import PRECISIONS, QUANTISED, Contract, DecoderContract
from ...engine.device import why_not_cuda
from ...engine.errors import InputError
from ..check import LARGE_BYTES, OnnxRun, trial_inputs
from ..sources.from_module import ModuleSource
from .added import said
from .calibration.given import Given
from .calibration.makers import Makers
from .calibration.observations import NAME as OBSERVATION
from .calibration.observations import Observations
from .encoders import quantise_encoders, stays
from .half import convert, rounded
from .inside import layers_line
from .large.outside import loaded, size_of
from .large.outside import write as write_graph
from .observe import GraphRun
from .prompts import Texts, digest_of
from .quantise import check_size, quantise
from .ranges import fitted, kind_of
from .speed import timed
from .tasks import MOST_SMALL, DecoderTask, NetworkTask
from .trajectory import CALIBRATION_SEED, CHECK_SEED, Trajectories, check_typical, relative_error, usual_programs

if TYPE_CHECKING:
    from ...engine.compiler.program import Program
    from ...engine.progress import Lines, Stages
    from ..guidance.apply import Source
    from .trajectory import Array

ALL = (*PRECISIONS, *QUANTISED)
TRIAL_SEEDS = 4  # of the inputs that a half-precision graph is compared on
FAR, STEPS = 3.0, 0.02  # a library's error beside the graph's: few samples differ, values fall to either side of a step
TRIAL_ELEMENTS = 4096  # of the samples that it is compared by, at least, where these are small


@final
@dataclass(frozen=True)
class Asked:
    """What a precision is measured with: the engine's programs, {} for the rule's.

    bound: the added error allowed, None for half of the sampler's own. for_gpu: for TensorRT, which takes symmetric
    int8 between float16 layers. clips: errors are those of values within the data's range. outputs: see insert.py.
    given: what the user gives to calibrate with. texts, observations: what makes conditions, once it is written.
    """

    programs: Mapping[int, Program] = field(default_factory=dict)
    bound: float | None = None
    for_gpu: bool = False
    clips: bool = True
    outputs: bool = False
    progress: Stages | None = None
    given: Given = field(default_factory=Given)
    texts: Texts | None = None
    observations: Observations | None = None

    def tables(self, contract: Contract) -> dict[str, Array]:
        """By condition float32 [m, *shape] of prompts, of observations, and as given. Raises InputError."""
        makers: list[Makers] = [one for one in (self.texts, self.observations) if one is not None]
        found: dict[str, Array] = {}
        for one in makers:
            found |= one.tables(contract)
        return found | dict(self.given.conditions)


@final
@dataclass(frozen=True, eq=False)
class Written:
    """The contract of network.onnx, the record of its precision (None where the source has it), latents to decode."""

    contract: Contract
    record: dict[str, Any] | None = None
    latents: tuple[Array, Array, Array] | None = None


def write_network(
    source: Source,
    path: Path,
    precision: str,
    asked: Asked,
    say: Lines,
    *,
    external: bool | None,
    consumes: bool = False,
) -> Written:
    """Write `path`. consumes: the source's weights may be freed on the way. Raises InputError, one line."""
    if precision not in ALL:
        raise InputError(f"precision '{precision}', expected one of {', '.join(ALL)}")
    held = source.contract.precision
    if precision not in QUANTISED and isinstance(source, ModuleSource):
        return Written(source.write(path, precision, external=external, consumes=consumes))
    if precision not in QUANTISED and precision == held:
        return Written(source.write(path, precision, external=external))
    if held != "fp32":
        raise InputError(
            f"network '{source.contract.name}' holds {held} weights and is not converted to {precision}; "
            f"build with precision {held}, or give the float32 file"
        )
    with tempfile.TemporaryDirectory(prefix=".float32-", dir=path.parent) as folder:
        whole = Path(folder) / path.name
        contract = source.write(whole, "fp32", external=None)
        programs = asked.programs or usual_programs(contract)
        given = replace(asked, programs=programs)
        if precision in QUANTISED:
            return _eight_bits(whole, path, contract, precision, given, say)
        return _half(whole, path, contract, precision, given, say)


def check_for_target(precision: str, targets: tuple[str, ...]) -> None:
    """Raises InputError for fp8 and a compute capability without it, and for what is measured where no GPU is."""
    if precision == "auto" and targets and why_not_cuda():
        raise InputError(
            f"precision auto takes what is fastest on this machine, which has no GPU, and target {targets[0]} is "
            "another; name a precision, such as fp16, or leave target out"
        )
    old = [one for one in targets if int(one.removeprefix("sm")) < 89]
    if precision == "fp8" and old:
        raise InputError(
            f"precision fp8 needs compute capability sm89 or newer, {old[0]} has none; build with int8 or fp16"
        )


def _run_of(whole: Path, contract: Contract) -> OnnxRun:
    return OnnxRun(whole, contract.inputs, contract.output, large=size_of(whole) > LARGE_BYTES)


# Half precision.
def _half(whole: Path, path: Path, contract: Contract, precision: str, asked: Asked, say: Lines) -> Written:
    run = _run_of(whole, contract)
    few = Trajectories.of(contract, CALIBRATION_SEED, TRIAL_SEEDS, clips=asked.clips)
    cases = few.inputs(asked.programs, lambda case: run(case.inputs))
    count = max(TRIAL_SEEDS, min(MOST_SMALL, math.ceil(TRIAL_ELEMENTS / math.prod(contract.shape))))
    trial = Trajectories.of(contract, CHECK_SEED, count, clips=asked.clips)
    half = convert(loaded(whole), contract, precision, cases)
    short = GraphRun(rounded(half.model) if precision == "bf16" else half.model, contract.inputs)
    samples: dict[str, Any] = {}
    for nfe, program in asked.programs.items():
        exact = trial.sample(program, lambda case: run(case.inputs))
        found = trial.sample(program, lambda case: short(case)[contract.output])
        samples[f"NFE {nfe}"] = trial.added(found, exact, math.inf).record
    write_graph(half.model, path)
    record = {
        "precision": precision,
        "float32_nodes": sorted(half.kept),
        "nodes": half.nodes,
        "evaluation_error": half.error,
        "samples": samples,
    }
    say(described(record))
    return Written(replace(contract, precision=precision), record)


# Eight bits.
def _eight_bits(whole: Path, path: Path, contract: Contract, precision: str, asked: Asked, say: Lines) -> Written:
    tables = asked.tables(contract)
    check_typical(contract, precision, tables)
    kind = kind_of(precision, for_gpu=asked.for_gpu)
    run = _run_of(whole, contract)
    model = loaded(whole)
    check_size(model, contract, next(trial_inputs(contract)))
    say(f"measuring samples in float32, to quantise {contract.name} by")
    task = NetworkTask(contract, asked.programs, lambda case: run(case.inputs), asked.bound, asked.clips, tables, say)
    made = quantise(
        model,
        task,
        kind,
        contract=contract,
        outputs=asked.outputs and not kind.halves,
        say=say,
        progress=asked.progress,
    )
    write_graph(made.model, path)
    record = made.record
    record["calibration_seeds"] = len(task.calibration.seeds)
    record["quantise_error"], record["for_gpu"] = asked.bound, asked.for_gpu
    record["programs"] = {str(nfe): program.digest for nfe, program in asked.programs.items()}
    for nfe, own in task.own.items():
        record["samples"][f"NFE {nfe}"]["own"] = own
    written = replace(contract, precision=precision_between(precision, for_gpu=asked.for_gpu))
    say(described(record))
    if not kind.halves:  # those are for another machine
        trial = task.trial(lambda case: run(case.inputs))
        here = timed({"fp32": (whole, contract), precision: (path, written)}, trial)
        record["milliseconds"] = here.milliseconds
        say(speed_line(here.milliseconds, precision))
        wanted = [run(case.inputs) for case in trial]
        errors = {name: relative_error(found, wanted) for name, found in here.outputs.get(precision, {}).items()}
        record["libraries"] = {name: error if math.isfinite(error) else None for name, error in errors.items()}
        for line in differing_lines(errors, record["evaluation_error"], precision):
            say(line)
    makers = contract, task, lambda case: run(case.inputs), kind, say, asked.progress
    record["given"] = asked.given.digest
    if asked.texts is not None:
        record["prompts"] = digest_of(asked.given.prompts)
        record["text_encoders"] = quantise_encoders(asked.texts, *makers)
    if asked.observations is not None:
        record["observation_encoder"] = quantise_encoders(asked.observations, *makers).get(OBSERVATION)
    latents = None if asked.clips else task.latents(lambda case: run(case.inputs))
    return Written(written, record, latents)


def quantise_decoder(
    path: Path, exact: Path, contract: DecoderContract, written: Written, precision: str, asked: Asked, say: Lines
) -> dict[str, Any] | None:
    """decoder.onnx at `path` in eight bits, calibrated on latents that the sampler made; its record.

    exact: its float32 graph, which may be the same file. None where nothing is done.
    """
    if written.latents is None or not exact.exists():
        return None
    run = OnnxRun(exact, contract.inputs, contract.output)
    kind = fitted(kind_of(precision, for_gpu=asked.for_gpu), contract.precision)
    span = written.contract.data_range
    try:
        task = DecoderTask(contract, written.latents, lambda case: run(case.inputs), asked.bound, span)
        given = {"contract": contract, "outputs": asked.outputs and not kind.symmetric}
        made = quantise(loaded(exact), task, kind, **given, say=say, progress=asked.progress)
    except InputError as error:
        return stays("the decoder", contract.precision, str(error), say)
    write_graph(made.model, path)
    say(f"decoder: {described(made.record)}")
    return made.record


def precision_between(precision: str, *, for_gpu: bool) -> str:
    """Of the layers that stay in floating point, and of what stands beside the network."""
    return "fp16" if kind_of(precision, for_gpu=for_gpu).halves else "fp32"


def described(record: Mapping[str, Any]) -> str:
    """One line: what was converted and the errors that it costs."""
    samples = [
        f"{name} {said(one)}" + (f" (the sampler's own error {one['own']:.2g})" if "own" in one else "")
        for name, one in record["samples"].items()
    ]
    if "layers" in record:
        what = layers_line(record["layers"])
        back = len(record["given_back"])
        what += f", {back} of them given back to float" if back else ""
    else:
        kept = len(record["float32_nodes"])
        what = f"{record['nodes'] - kept} of {record['nodes']} nodes, {kept} stay float32"
    return (
        f"{record['precision']}: {what}; relative error of an evaluation {record['evaluation_error']:.2g}, "
        f"RMS added to samples: {', '.join(samples)}"
    )


def differing_lines(errors: Mapping[str, float], stated: float, precision: str) -> list[str]:
    """A line for each library whose evaluation is wrong by far more than the graph is. errors: relative, by library."""
    most = FAR * stated + STEPS
    return [
        f"{precision}: {name} computes an evaluation here with a relative error of {error:.2g}, the graph itself has "
        f"{stated:.2g}; name another backend for this engine"
        for name, error in errors.items()
        if not error <= most
    ]


def speed_line(times: Mapping[str, float], precision: str) -> str:
    """`int8: 1.02 ms an evaluation here, fp32 1.9 ms`, and whether that is worth it."""
    if len(times) < 2:
        return f"{precision}: no library here runs it and fp32, so its speed is not known"
    line = f"{precision}: {times[precision]:.3g} ms an evaluation here, fp32 {times['fp32']:.3g} ms"
    return f"{line}; it is slower here than fp32" if times[precision] > times["fp32"] else line
