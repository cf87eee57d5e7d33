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
from dataclasses import dataclass, replace
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

    def errors(self, evaluate: Evaluate, *, check: bool) -> dict[str, tuple[float, float]]:
        found = np.concatenate([evaluate(one) for one in self.both[check]])
        return {self.made: (_rms(found - self.exact[check]), self.bound)}


def text_task(texts: Texts, encoder: TextEncoder, bound: float) -> EncoderTask:
    """Encodings of prompts: every second one calibrates, the others check."""
    tokens, contract = texts.tokens(encoder), encoder.contract
    first, second = ([_case(tokens[n : n + 1]) for n in range(start, len(tokens), 2)] for start in (0, 1))
    both = first, second or first
    run = OnnxRun(texts.folder / encoder.file, contract.inputs, contract.output)
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
                text_task(texts, one, allowed),
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
        task = image_task(encoder, latents, lambda case: decode(case.inputs), lambda case: encode(case.inputs), bound)
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
