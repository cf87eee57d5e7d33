"""What an engine remembers of its precision, in its provenance: how it was chosen, what was quantised, what it costs.

"int8 inside"       "25 of 25 convolutions, 0 of 9 linear layers", counted in network.onnx
"int8 weight bits"  7 where no sum of two products leaves 16 bits, as on a CPU without VNNI; else 8
"precision_record"  what a conversion kept and cost: errors of an evaluation and of samples; layers given back
"precision_choice"  of `auto`: times and errors of every candidate
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...engine import machine
from ...engine.artifact import DECODER, WEIGHT_BITS
from ...engine.backends.registry import TENSORRT
from ...engine.contract.contract import PRECISIONS, QUANTISED
from ...engine.device import why_not_cuda
from ...engine.errors import InputError
from .encoders import quantise_image_encoder
from .inside import inside, widest_weight
from .prompts import digest_of
from .ranges import INT8_SMALL, kind_of
from .write import Asked, Written, quantise_decoder

if TYPE_CHECKING:
    import torch

    from ...engine.contract.contract import DecoderContract
    from ...engine.progress import Lines

RECORD, CHOICE = "precision_record", "precision_choice"


def records_of_precision(
    folder: Path,
    exact: Path,
    made: Written,
    decoder: DecoderContract | None,
    images: DecoderContract | None,
    precision: str,
    asked: Asked,
    say: Lines,
) -> dict[str, Any]:
    """Entries for the provenance, after decoder.onnx and encoders/image.onnx, if there are any, were quantised too.

    exact: where their float32 graphs are, `folder` itself where those are what was written.
    """
    import onnx

    held = onnx.load(folder / "network.onnx", load_external_data=False)
    found: dict[str, Any] = dict(inside(held))
    if widest := widest_weight(held):
        found[WEIGHT_BITS] = 7 if widest <= INT8_SMALL.most else 8
    if made.record is None:
        return found
    record = made.record
    if decoder is not None and images is not None and precision in QUANTISED:  # by the exact decoder
        kind = kind_of(precision, for_gpu=asked.for_gpu)
        given = folder, exact, images, decoder, made.latents, asked.bound, kind
        record["image_encoder"] = quantise_image_encoder(*given, say, asked.progress)
    if decoder is not None and precision in QUANTISED:
        record["decoder"] = quantise_decoder(*(folder / DECODER, exact / DECODER, decoder, made, precision, asked, say))
    return {**found, RECORD: record}


def is_measured(record: Any, asked: Asked) -> bool:
    """Whether the layers of an int8 or fp8 engine were chosen for these programs, this bound and this kind of chip."""
    if not isinstance(record, dict) or not isinstance(held := record.get("programs"), dict):
        return False
    same = all(held.get(str(nfe)) == program.digest for nfe, program in asked.programs.items())
    eight = record.get("precision") == "int8" and record.get("weight_bits", 8) == 8
    if eight and not asked.for_gpu and machine.adds_in_16_bits():
        return False  # of a CPU with VNNI
    same = same and record.get("prompts") in (None, digest_of(asked.given.prompts))
    same = same and record.get("given") == asked.given.digest
    return same and record.get("quantise_error") == asked.bound and record.get("for_gpu") == asked.for_gpu


def is_for_gpu(backend: str, targets: tuple[str, ...], device: torch.device | None) -> bool:
    """Whether eight bits are stored as TensorRT takes them."""
    if backend in TENSORRT or targets:
        return True
    return device.type == "cuda" if device is not None else backend == "auto" and not why_not_cuda()


def check_quantise_error(bound: Any, precision: str) -> None:
    """Raises InputError unless None, or a number above 0 for a precision that it bounds."""
    number = isinstance(bound, (int, float)) and not isinstance(bound, bool)
    if bound is not None and not (number and math.isfinite(bound) and bound > 0):
        raise InputError(f"quantise_error {bound!r}, expected an RMS above 0, such as 0.02, or None")
    if bound is not None and precision in PRECISIONS:
        raise InputError(f"quantise_error is of int8, fp8 and auto, not of precision {precision}; leave it out")
