"""Encoders of an int8 or fp8 engine in eight bits too, each by what its error does in the end.

of conditions   text encoders and a policy's observation encoder, judged by samples: what noise in the conditions
                changes in samples says how large an error of an encoding may be; an engine's encoders together are
                then measured by samples of prompts or observations that calibrated nothing
of images       judged by latents: at most half of the distance that pictures have from their own latents, on the way
                latents -> picture -> latents

None may be off by more than a tenth, whatever samples can bear. What does not fit stays as it was written, and says so.
Each is calibrated by its float32 graph, and gets the kind of eight bits that the layers around it take (ranges.py).
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from ...engine.artifact import DECODER, IMAGE_ENCODER
from ...engine.contract.contract import Contract, DecoderContract
from ...engine.errors import InputError
from ..check import OnnxRun, TrialInputs
from .added import Added
from .calibration.makers import Makers, Part
from .large.outside import loaded
from .large.outside import write as write_graph
from .quantise import quantise
from .ranges import Kind, fitted
from .tasks import HALF, NetworkTask
from .trajectory import Array, Evaluate

if TYPE_CHECKING:
    from ...engine.progress import Lines, Stages

MOST = 0.1  # of the RMS of encodings, and of latents
NOISE = 0.01  # of the RMS of the conditions: what samples are tried with
FLOATS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@final
@dataclass(eq=False)
class EncoderTask:
    """What an encoder makes of cases, `encodings` or `latents`. The first cases calibrate, the others check.

    exact: of each of the two, in float32. bound: RMS of an error, over all of them.
    """

    inputs: tuple[str, ...]
    output: str
    made: str
    both: tuple[list[TrialInputs], list[TrialInputs]]
    exact: tuple[Array, Array]
    bound: float
    time: str = ""

    def cases(self, evaluate: Evaluate) -> list[TrialInputs]:
        return self.both[0]

    def others(self, evaluate: Evaluate) -> list[TrialInputs]:
        return self.both[1]

    def errors(self, evaluate: Evaluate, *, check: bool) -> dict[str, Added]:
        found = np.concatenate([evaluate(one) for one in self.both[check]])
        return {self.made: Added.of(found - self.exact[check], self.bound)}


def encoding_task(part: Part, bound: float) -> EncoderTask:
    """Encodings of prompts or observations: every second input calibrates, the others check."""
    first, second = ([_case(part.inputs[n : n + 1]) for n in range(start, len(part.inputs), 2)] for start in (0, 1))
    both = first, second or first
    contract = part.contract
    run = OnnxRun(part.exact, contract.inputs, contract.output)
    exact = _made(both, lambda case: run(case.inputs))
    return EncoderTask(contract.inputs, contract.output, "encodings", both, exact, bound)


def image_task(
    contract: DecoderContract,
    latents: tuple[Array, Array, Array],
    decode: Evaluate,
    encode: Evaluate,
    bound: float | None,
) -> EncoderTask:
    """Latents of pictures that the decoder made. bound: None for half of what the way there and back costs, or less."""
    first, second = ([_case(decode(_case(one[None]))) for one in some] for some in latents[:2])
    exact = _made((first, second), encode)
    around = HALF * _rms(exact[1] - latents[1])
    bound = min(around, MOST * _rms(latents[1])) if bound is None else bound
    return EncoderTask(contract.inputs, contract.output, "latents", (first, second), exact, bound)


def _case(values: Array) -> TrialInputs:
    return TrialInputs(values, np.empty(0), ())


def _made(both: tuple[list[TrialInputs], list[TrialInputs]], evaluate: Evaluate) -> tuple[Array, Array]:
    first, second = (np.concatenate([evaluate(one) for one in some]) for some in both)
    return first, second


# Encoders of conditions.
def quantise_encoders(
    makers: Makers,
    contract: Contract,
    task: NetworkTask,
    evaluate: Evaluate,
    kind: Kind,
    say: Lines,
    progress: Stages | None,
) -> dict[str, Any]:
    """Every encoder that can be, in eight bits in its place; by name its record, or {"float32": why it stays so}.

    task, evaluate: the network in float32, whose samples judge.
    """
    parts = makers.parts()
    if not parts:
        return {}
    allowed = _allowed(makers, contract, task, evaluate) / math.sqrt(len(parts))
    found: dict[str, Any] = {}
    trials: dict[str, Path] = {}
    with tempfile.TemporaryDirectory(prefix=".eight-bits-", dir=parts[0].place.parent) as folder:
        for one in parts:
            try:
                of, asked = fitted(kind, one.contract.precision), encoding_task(one, allowed)
                made = quantise(loaded(one.exact), asked, of, contract=one.contract, say=say, progress=progress)
            except InputError as error:
                found[one.name] = stays(one.name, one.contract.precision, str(error), say)
                continue
            found[one.name], trials[one.name] = made.record, Path(folder) / one.place.name
            write_graph(made.model, trials[one.name])
        if not trials:
            return found
        added = task.changed(makers.of_files(trials).tables(contract), evaluate)
        samples = {f"NFE {nfe}": {"added": error, "bound": task.bounds[nfe]} for nfe, error in added.items()}
        fits = all(one["added"] <= one["bound"] for one in samples.values())
        for one in parts:
            if one.name in trials and fits:
                found[one.name]["samples"] |= samples
                _moved(trials[one.name], one.place)
            elif one.name in trials:
                why = f"in {kind.name} its conditions change samples by more than the bound"
                found[one.name] = stays(one.name, one.contract.precision, why, say)
    return found


def _allowed(makers: Makers, contract: Contract, task: NetworkTask, evaluate: Evaluate) -> float:
    """RMS of an error of the encodings that samples can bear, by what noise in them does; linear in it."""
    tables = makers.tables(contract)
    names = [name for name in makers.conditions if not np.isin(tables[name], (0, 1)).all()]  # masks stay
    size = NOISE * _rms(np.concatenate([tables[name].ravel() for name in names]))
    generator = np.random.default_rng(0)
    noisy = {
        name: tables[name] + size * generator.standard_normal(tables[name].shape).astype(np.float32) for name in names
    }
    ratio = max(error / task.bounds[nfe] for nfe, error in task.changed(tables | noisy, evaluate).items())
    most = MOST / NOISE * size
    return min(size / ratio, most) if ratio > 0 else most


def _moved(trial: Path, place: Path) -> None:
    """The trial with its weights, if they lie beside it, in place of a file with its own."""
    place.with_name(f"{place.name}.data").unlink(missing_ok=True)
    for one in trial.parent.glob(f"{trial.name}*"):
        one.replace(place.parent / one.name)


def stays(name: str, precision: str, why: str, say: Lines) -> dict[str, Any]:
    """Says that a part is not quantised; its record."""
    say(f"{name} stays {FLOATS[precision]}: {why}")
    return {FLOATS[precision]: why}


# The image encoder.
def quantise_image_encoder(
    folder: Path,
    exact: Path,
    encoder: DecoderContract,
    decoder: DecoderContract,
    latents: tuple[Array, Array, Array] | None,
    bound: float | None,
    kind: Kind,
    say: Lines,
    progress: Stages | None,
) -> dict[str, Any] | None:
    """encoders/image.onnx in eight bits in `folder`: its record, or why it stays; None where nothing is done.

    exact: where both graphs are in float32. encoder, decoder: as they are in `folder`.
    """
    path = exact / IMAGE_ENCODER
    if latents is None or not path.exists():
        return None
    decode = OnnxRun(exact / DECODER, decoder.inputs, decoder.output)
    encode = OnnxRun(path, encoder.inputs, encoder.output)
    name = "the image encoder"
    try:
        task = image_task(encoder, latents, lambda case: decode(case.inputs), lambda case: encode(case.inputs), bound)
        of = fitted(kind, encoder.precision)
        made = quantise(loaded(path), task, of, contract=encoder, say=say, progress=progress)
    except InputError as error:
        return stays(name, encoder.precision, str(error), say)
    write_graph(made.model, folder / IMAGE_ENCODER)
    return made.record


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if np.isfinite(values).all() else math.inf
