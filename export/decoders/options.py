"""What is said of a latent model's decoder, which becomes decoder.onnx: from samples to images in `data_range`.

    image [B, C, H, W] = decode(latents [B, *shape] / scaling + shift)

Scaling and shift are part of the exported graph and are computed in float32. An AutoencoderKL brings its own:
scaling_factor and shift_factor, or with a mean and a deviation of the latents scaling_factor / latents_std and
latents_mean, as diffusers' pipelines apply them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from ...engine.contract.contract import PRECISIONS
from ...engine.errors import InputError, shown
from ...engine.json_fields import is_number

if TYPE_CHECKING:
    from torch import nn

    from .from_module import Autoencoder

Constant = float | tuple[float, ...]  # one number, or one a channel
FORMAT = "pfdiff decoder 1"  # part of every digest: changes when the same source would be exported otherwise
USAGE = (
    "a module, file.py:factory, a diffusers folder or an .onnx file, and with commas scaling=0.18215, shift=0.1, "
    "precision=fp32"
)


@final
@dataclass(frozen=True)
class Decoder:
    """What decodes a network's samples, as `Network(decoder=...)` takes it.

    source     an nn.Module, forward(latents [B, *shape]) -> image [B, C, H, W]; an AutoencoderKL, whose `decode` is
               used; "file.py:factory", which returns either; a folder of one of diffusers' autoencoders, such as
               AutoencoderTiny; or an ONNX file of one input and one image
    scaling    decode is given latents / scaling + shift: one number or one a channel; None means those of an
    shift      AutoencoderKL's config, else 1 and 0
    precision  fp32, fp16 or bf16; None: the network's, but fp32 for fp16 where the config says `force_upcast`
    """

    source: nn.Module | str | Path | Autoencoder
    scaling: float | Sequence[float] | None = None
    shift: float | Sequence[float] | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        if self.precision not in (None, *PRECISIONS):
            raise InputError(f"decoder: precision {self.precision!r}, expected one of {', '.join(PRECISIONS)}")


def parse_decoder(text: str) -> Decoder:
    """The decoder that a text means, such as 'vae.py:load' or 'decoder.onnx,scaling=0.18215'. Raises InputError."""
    source, *words = (word.strip() for word in text.split(","))
    options: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in ("scaling", "shift", "precision") or key in options:
            raise InputError(f"decoder '{text}': got '{word}', expected {USAGE}")
        try:
            options[key] = value if key == "precision" else float(value)
        except ValueError:
            raise InputError(f"decoder '{text}': '{value}' is no number, expected for instance {key}=0.18215") from None
    return Decoder(source, **options)


def constants(options: Decoder, config: Any) -> tuple[Constant, Constant]:
    """(scaling, shift): what was said, else what the autoencoder's config says, else 1 and 0."""
    scaling, shift = said(config, "scaling_factor", 1.0), said(config, "shift_factor", 0.0)
    mean, deviation = said(config, "latents_mean", None), said(config, "latents_std", None)
    for name, found in {"scaling_factor": scaling, "shift_factor": shift, "latents_std": deviation}.items():
        each = found if isinstance(found, (list, tuple)) else [0.0 if found is None else found]
        if not all(is_number(one) for one in each) or (name == "latents_std" and deviation is not None and 0 in each):
            raise InputError(f"the decoder's config says {name} {shown(found)}, expected numbers; save it again")
    if mean is not None and deviation is not None:
        scaling, shift = [scaling / one for one in deviation], mean
    return _constant(options.scaling, scaling), _constant(options.shift, shift)


def _constant(given: Any, found: Any) -> Constant:
    chosen = found if given is None else given
    return tuple(chosen) if isinstance(chosen, Sequence) else chosen


def said(config: Any, name: str, otherwise: Any) -> Any:
    value = getattr(config, name, None)
    return otherwise if value is None else value


def image_shape(name: str, shape: Sequence[int], batch: int) -> tuple[int, ...]:
    """[C, H, W], or [C, frames, H, W], of what a decoder made of a batch.

    Raises InputError when that is no image or video for each sample.
    """
    if len(shape) not in (4, 5) or shape[0] != batch:
        raise InputError(
            f"decoder '{name}': it returns {list(shape)} for a batch of {batch}, expected images [{batch}, C, H, W]"
        )
    return tuple(shape[1:])
