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
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from ...engine.artifact import DECODER, IMAGE_ENCODER
from ...engine.contract.contract import Contract, DecoderContract
from ...engine.errors import InputError
from ..check import OnnxRun, TrialInputs
from .calibration.makers import Makers, Part
from .observe import LARGEST_BYTES
from .quantise import Quantised, quantise
from .ranges import Kind, fitted
from .tasks import HALF, NetworkTask
from .trajectory import Array, Evaluate

if TYPE_CHECKING:
    import onnx

    from ...engine.progress import Lines, Stages

MOST = 0.1  # of the RMS of encodings, and of latents
NOISE = 0.01  # of the RMS of the conditions: what samples are tried with
FLOATS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@final
class EncodingTask:
    """Encodings: every second input calibrates, the others check. bound: RMS over all of an encoding."""

    time = ""

    def __init__(self, part: Part, bound: float) -> None:
        self.inputs, self.output = part.contract.inputs, part.contract.output
        self._cases, self._others = (
            [TrialInputs(part.inputs[n : n + 1], np.empty(0), ()) for n in range(first, len(part.inputs), 2)]
            for first in (0, 1)
        )
        self._others = self._others or self._cases
        self._bound = bound
        run = OnnxRun(part.exact, self.inputs, self.output)
        self._exact = [[run(one.inputs) for one in cases] for cases in (self._cases, self._others)]

    def cases(self, evaluate: Evaluate) -> list[TrialInputs]:
        return self._cases

    def others(self, evaluate: Evaluate) -> list[TrialInputs]:
        return self._others

    def errors(self, evaluate: Evaluate, *, check: bool) -> dict[str, tuple[float, float]]:
        found = np.concatenate([evaluate(one) for one in (self._others if check else self._cases)])
        return {"encodings": (_rms(found - np.concatenate(self._exact[check])), self._bound)}


@final
class ImageTask:
    """Latents of pictures that the decoder made. bound: None for half of what the way there and back costs, or less."""

    time = ""

    def __init__(
        self,
        contract: DecoderContract,
        latents: tuple[Array, Array, Array],
        decode: Evaluate,
        encode: Evaluate,
        bound: float | None,
    ) -> None:
        self.inputs, self.output = contract.inputs, contract.output
        pictures = [[decode(TrialInputs(one[None], np.empty(0), ())) for one in some] for some in latents[:2]]
        self._cases, self._others = ([TrialInputs(one, np.empty(0), ()) for one in some] for some in pictures)
        self._exact = [np.concatenate([encode(one) for one in some]) for some in (self._cases, self._others)]
        around = HALF * _rms(self._exact[1] - latents[1])
        self.bound = min(around, MOST * _rms(latents[1])) if bound is None else bound

    def cases(self, evaluate: Evaluate) -> list[TrialInputs]:
        return self._cases

    def others(self, evaluate: Evaluate) -> list[TrialInputs]:
        return self._others

    def errors(self, evaluate: Evaluate, *, check: bool) -> dict[str, tuple[float, float]]:
        found = np.concatenate([evaluate(one) for one in (self._others if check else self._cases)])
        return {"latents": (_rms(found - self._exact[check]), self.bound)}


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
                of = fitted(kind, one.contract.precision)
                given = {"contract": one.contract, "say": say, "progress": progress}
                made = quantise(loaded(one.exact), EncodingTask(one, allowed), of, **given)
            except InputError as error:
                found[one.name] = stays(one.name, one.contract.precision, str(error), say)
                continue
            found[one.name], trials[one.name] = made.record, Path(folder) / one.place.name
            write(made, trials[one.name])
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


def loaded(path: Path) -> onnx.ModelProto:
    """With its weights, also those beside the file. Raises InputError above 2 GiB, before they are read."""
    import onnx

    held = sum(one.stat().st_size for one in path.parent.glob(f"{path.name}*"))
    if held > LARGEST_BYTES:
        raise InputError(
            f"'{path.name}' has {held / 2**30:.1f} GiB, and a graph to measure in memory is one protobuf message of at "
            "most 2"
        )
    return onnx.load(path)


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
        task = ImageTask(encoder, latents, lambda case: decode(case.inputs), lambda case: encode(case.inputs), bound)
        of = fitted(kind, encoder.precision)
        made = quantise(loaded(path), task, of, contract=encoder, say=say, progress=progress)
    except InputError as error:
        return stays(name, encoder.precision, str(error), say)
    write(made, folder / IMAGE_ENCODER)
    return made.record


def write(made: Quantised, path: Path) -> None:
    """The graph at `path`, in place of what is there."""
    import onnx_ir

    from ..to_onnx import save_model

    save_model(onnx_ir.from_proto(made.model), path)


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if np.isfinite(values).all() else math.inf
