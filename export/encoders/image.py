"""The way back of a latent model's decoder: encoders/image.onnx, from pictures to the latents that a sample starts as.

    latents [B, *shape] = (mean of encode(image [B, C, H, W]) - shift) * scaling

diffusers' pipelines draw the latents around this mean with the autoencoder's own deviation, which is far below the
noise that follows; here the mean itself is taken, so that the same picture always gives the same latents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from ...engine.artifact import IMAGE_ENCODER
from ...engine.contract.contract import Contract, DecoderContract
from ...engine.errors import InputError
from ...engine.progress import Lines
from ...engine.tensors import PRECISION_DTYPES
from ..check import TrialInputs, check_export
from ..decoders import autoencoders
from ..decoders.autoencoders import autoencoder_of
from ..decoders.from_module import ModuleDecoder
from ..decoders.options import Constant
from ..to_onnx import export_module, prepared

FORMAT = b"pfdiff image encoder 1"
# diffusers' autoencoders, and where the latents are in what `encode` returns.
LATENTS: dict[str, Callable[[Any], Tensor]] = {
    "AutoencoderKL": lambda out: out.latent_dist.mode(),
    "AutoencoderTiny": lambda out: out.latents,
    "VQModel": lambda out: out.latents,
    "Compressed": lambda out: out,
    "Patched": lambda out: out,
    "OneFrame": lambda out: out,
}


@final
class EncodeImage(nn.Module):
    """forward(image [B, C, H, W]) -> latents [B, *shape] in the dtype of the image, scaling and shift included."""

    def __init__(self, network: nn.Module, kind: str, scaling: Constant, shift: Constant) -> None:
        super().__init__()
        self.network, self.kind = network, kind
        self.scaling, self.shift = scaling, shift

    def forward(self, image: Tensor) -> Tensor:
        encode: Any = self.network
        z = LATENTS[self.kind](encode.encode(image)).float()
        return ((z - _column(self.shift, z)) * _column(self.scaling, z)).to(image.dtype)


def _column(values: Constant, latents: Tensor) -> float | Tensor:
    return torch.tensor(values, device=latents.device).reshape(-1, 1, 1) if isinstance(values, tuple) else values


@final
class ImageEncoder:
    """The encoder beside a decoder that is one of diffusers' autoencoders; `of` finds it."""

    def __init__(self, decoder: ModuleDecoder, kind: str, samples: Contract) -> None:
        made = decoder.contract
        self._decoder = decoder
        self._module = EncodeImage(autoencoder_of(decoder.module.network), kind, made.scaling, made.shift)
        self._contract = DecoderContract(made.name, made.image, samples.shape, input="image", output="latents")

    @classmethod
    def of(cls, decoder: Any, samples: Contract) -> ImageEncoder | None:
        """None where the decoder is of another kind, or samples are no latents [C, H, W]."""
        if not isinstance(decoder, ModuleDecoder) or len(samples.shape) != 3:
            return None
        kinds = type(autoencoder_of(decoder.module.network)).__mro__
        known = ("diffusers.", autoencoders.__name__)
        names = (one.__name__ for one in kinds if one.__module__.startswith(known))
        kind = next((one for one in names if one in LATENTS), None)
        return None if kind is None else cls(decoder, kind, samples)

    @property
    def digest(self) -> str:
        """sha256 hex; the decoder's covers the weights of both."""
        return hashlib.sha256(FORMAT + self._decoder.digest.encode()).hexdigest()

    def write(self, folder: Path, precision: str, progress: Lines) -> DecoderContract:
        """Write encoders/image.onnx in the decoder's precision, compare it with the module. Raises InputError."""
        used = self._decoder.precision_for(precision)
        contract = replace(self._contract, precision=used)
        progress(f"exporting the image encoder of {contract.name} to ONNX ({used})")
        path = folder / IMAGE_ENCODER
        path.parent.mkdir(exist_ok=True)
        self._decoder.whole()
        with prepared(self._module, PRECISION_DTYPES[used]) as encode:
            export_module(encode, contract, path)
            made = tuple(encode(torch.zeros(1, *contract.shape, dtype=PRECISION_DTYPES[used])).shape[1:])
        if made != contract.image:
            raise InputError(
                f"the image encoder of {contract.name} makes {list(made)} of {list(contract.shape)}, samples are "
                f"{list(contract.image)}; give encoders=False (--no-encoders)"
            )

        def run(case: TrialInputs, dtype: torch.dtype) -> Any:
            with prepared(self._module, dtype) as encode, torch.no_grad():
                return encode(torch.from_numpy(case.x).to(dtype)).float().numpy()

        plain = None if used == "fp32" else lambda case: run(case, PRECISION_DTYPES[used])
        check_export(path, contract, lambda case: run(case, torch.float32), plain)
        return contract
