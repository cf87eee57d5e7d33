"""Text encoders and the image encoder of an int8 engine in eight bits, each by what its error does in the end.

text encoders   judged by samples: what noise in the conditions changes in samples says how large an error of an
                encoding may be; the encoders together are then measured by samples of prompts that calibrated nothing
image encoder   judged by latents: at most half of the distance that pictures have from their own latents, on the way
                latents -> picture -> latents

Neither may be off by more than a tenth, whatever samples can bear.

What does not fit stays float32, and says so. Nothing is done for a GPU, where both stay fp16.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from ...engine.artifact import DECODER, IMAGE_ENCODER
from ...engine.contract.contract import Contract, DecoderContract
from ...engine.contract.text_encoders import TextEncoder
from ...engine.errors import InputError
from ..check import OnnxRun, TrialInputs
from .prompts import Texts
from .quantise import Quantised, quantise
from .ranges import kind_of
from .tasks import HALF, NetworkTask
from .trajectory import Array, Evaluate

if TYPE_CHECKING:
    import onnx

    from ...engine.progress import Lines, Stages

TRIAL = ".int8"  # ends the name of a file until its samples were seen
MOST = 0.1  # of the RMS of encodings, and of latents
NOISE = 0.01  # of the RMS of the conditions: what samples are tried with


@final
class TextTask:
    """Encodings of prompts: every second one calibrates, the others check. bound: RMS over all of an encoding."""

    time = ""

    def __init__(self, texts: Texts, encoder: TextEncoder, bound: float) -> None:
        self.inputs, self.output = encoder.contract.inputs, encoder.contract.output
        tokens = texts.tokens(encoder)
        self._cases, self._others = (
            [TrialInputs(tokens[n : n + 1], np.empty(0), ()) for n in range(first, len(tokens), 2)] for first in (0, 1)
        )
        self._others = self._others or self._cases
        self._bound = bound
        run = OnnxRun(texts.folder / encoder.file, self.inputs, self.output)
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


# Text encoders.
def quantise_texts(
    texts: Texts, contract: Contract, task: NetworkTask, evaluate: Evaluate, say: Lines, progress: Stages | None
) -> dict[str, Any]:
    """Every text encoder that can be, in int8 in its place; by name its record, or {"float32": why it stays so}.

    task, evaluate: the network in float32, whose samples judge.
    """
    encoders = texts.encoders.encoders
    allowed = _allowed(texts, contract, task, evaluate) / math.sqrt(len(encoders))
    found: dict[str, Any] = {}
    short: dict[str, TextEncoder] = {}
    for one in encoders:
        name = one.contract.name
        try:
            made = quantise(
                _loaded(texts.folder / one.file),
                TextTask(texts, one, allowed),
                kind_of("int8", for_gpu=False),
                say=say,
                progress=progress,
            )
        except InputError as error:
            found[name] = _stays(name, str(error), say)
            continue
        found[name], short[name] = made.record, replace(one, file=f"{one.file}{TRIAL}")
        _write(made, texts.folder / short[name].file)
    if not short:
        return found
    taken = tuple(short.get(one.contract.name, one) for one in encoders)
    tables = replace(texts, encoders=replace(texts.encoders, encoders=taken)).tables(contract)
    added = task.changed(tables, evaluate)
    samples = {f"NFE {nfe}": {"added": error, "bound": task.bounds[nfe]} for nfe, error in added.items()}
    fits = all(one["added"] <= one["bound"] for one in samples.values())
    for one in encoders:
        name = one.contract.name
        if name not in short:
            continue
        trial = texts.folder / short[name].file
        if fits:
            found[name]["samples"] |= samples
            trial.replace(texts.folder / one.file)
        else:
            trial.unlink()
            found[name] = _stays(name, "in int8 its prompts change samples by more than the bound", say)
    return found


def _allowed(texts: Texts, contract: Contract, task: NetworkTask, evaluate: Evaluate) -> float:
    """RMS of an error of the encodings that samples can bear, by what noise in them does; linear in it."""
    tables = texts.tables(contract)
    names = [name for name in texts.encoders.conditions if not np.isin(tables[name], (0, 1)).all()]  # masks stay
    size = NOISE * _rms(np.concatenate([tables[name].ravel() for name in names]))
    generator = np.random.default_rng(0)
    noisy = {
        name: tables[name] + size * generator.standard_normal(tables[name].shape).astype(np.float32) for name in names
    }
    ratio = max(error / task.bounds[nfe] for nfe, error in task.changed(tables | noisy, evaluate).items())
    most = MOST / NOISE * size
    return min(size / ratio, most) if ratio > 0 else most


def _stays(name: str, why: str, say: Lines) -> dict[str, Any]:
    say(f"{name} stays float32: {why}")
    return {"float32": why}


def _loaded(path: Path) -> onnx.ModelProto:
    """Raises InputError for weights of more than 1 GiB, which lie beside the file."""
    import onnx

    if path.with_name(f"{path.name}.data").exists():
        raise InputError(f"'{path.name}' has more than 1 GiB of weights")
    return onnx.load(path)


# The image encoder.
def quantise_image_encoder(
    folder: Path,
    encoder: DecoderContract,
    decoder: DecoderContract,
    latents: tuple[Array, Array, Array] | None,
    bound: float | None,
    say: Lines,
    progress: Stages | None,
) -> dict[str, Any] | None:
    """encoders/image.onnx in int8, beside decoder.onnx in float32: its record, or why it stays float32.

    None where nothing is done: of a GPU, or of another precision.
    """
    if latents is None or encoder.precision != "fp32":
        return None
    path = folder / IMAGE_ENCODER
    decode = OnnxRun(folder / DECODER, decoder.inputs, decoder.output)
    encode = OnnxRun(path, encoder.inputs, encoder.output)
    name = "the image encoder"
    try:
        task = ImageTask(encoder, latents, lambda case: decode(case.inputs), lambda case: encode(case.inputs), bound)
        made = quantise(_loaded(path), task, kind_of("int8", for_gpu=False), say=say, progress=progress)
    except InputError as error:
        return _stays(name, str(error), say)
    _write(made, path)
    return made.record


def _write(made: Quantised, path: Path) -> None:
    import onnx_ir

    from ..to_onnx import save_model

    save_model(onnx_ir.from_proto(made.model), path)


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if np.isfinite(values).all() else math.inf
