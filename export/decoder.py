"""The decoder of a latent model becomes decoder.onnx, from the network's samples to images in its `data_range`.

    image [B, C, H, W] = decode(latents [B, *shape] / scaling + shift)

Scaling and shift are part of the exported graph and are computed in float32. An AutoencoderKL brings its own:
scaling_factor and shift_factor, or with a mean and a deviation of the latents scaling_factor / latents_std and
latents_mean, as diffusers' pipelines apply them. It is compared with its source like a network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from ..engine.artifact import DECODER
from ..engine.contract import PRECISIONS, Contract, DecoderContract
from ..engine.errors import InputError
from .check import Array, Case, compare
from .module_source import content_digest, load_factory, pick_output
from .to_onnx import DTYPES, export_module, first_line, prepared

if TYPE_CHECKING:
    from .onnx_decoder import OnnxDecoder
    from .sources import Progress

Constant = float | tuple[float, ...]  # one number, or one a channel
FORMAT = "pfdiff decoder 1"  # part of every digest: changes when the same source would be exported otherwise
USAGE = "a module, file.py:factory or an .onnx file, and with commas scaling=0.18215, shift=0.1, precision=fp32"


@final
@dataclass(frozen=True)
class Decoder:
    """What decodes a network's samples, as `Network(decoder=...)` takes it.

    source     an nn.Module, forward(latents [B, *shape]) -> image [B, C, H, W]; an AutoencoderKL, whose `decode` is
               used; "file.py:factory", which returns either; or an ONNX file of one input and one image
    scaling    decode is given latents / scaling + shift: one number or one a channel; None means those of an
    shift      AutoencoderKL's config, else 1 and 0
    precision  fp32, fp16 or bf16; None: the network's, but fp32 for fp16 where the config says `force_upcast`
    """

    source: nn.Module | str | Path
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


def open_decoder(decoder: Decoder | nn.Module | str | Path, network: Contract) -> ModuleDecoder | OnnxDecoder:
    """The decoder fitted to the samples of `network`. Raises InputError, one line, when it does not fit."""
    words = decoder if isinstance(decoder, Decoder) else Decoder(decoder)
    if words is not decoder and isinstance(decoder, str):
        words = parse_decoder(decoder)
    source = words.source
    if isinstance(source, nn.Module):
        return ModuleDecoder(source, b"", words, network)
    if not isinstance(source, (str, Path)):
        raise InputError(f"decoder: got {type(source).__name__}, expected {USAGE}")
    if str(source).endswith(".onnx"):
        from .onnx_decoder import OnnxDecoder

        return OnnxDecoder(Path(source), words, network)
    if ".py:" in str(source):
        module, code = load_factory(str(source))
        return ModuleDecoder(module, code, words, network)
    raise InputError(f"decoder '{source}': not known; expected {USAGE}")


@final
class Decode(nn.Module):
    """forward(latents [B, *shape]) -> image [B, C, H, W] in the dtype of the latents, scaling and shift included."""

    def __init__(self, network: nn.Module, scaling: Constant, shift: Constant) -> None:
        super().__init__()
        self.network = network
        self.call = _method(network)
        self.scaling, self.shift = scaling, shift

    def forward(self, latents: Tensor) -> Tensor:
        z = latents.float() / _column(self.scaling, latents) + _column(self.shift, latents)
        decode = self.network if self.call is None else getattr(self.network, self.call)
        return pick_output(decode(z.to(latents.dtype)), None).to(latents.dtype)


def _method(network: nn.Module) -> str | None:
    """`decode` of an autoencoder that is configured as in diffusers; None: the module itself is called."""
    return "decode" if _config(network) is not None and callable(getattr(network, "decode", None)) else None


def _config(network: nn.Module) -> Any:
    return getattr(network, "config", None)


def _column(values: Constant, latents: Tensor) -> float | Tensor:
    """One number as it is, one a channel as [c, 1, ...]."""
    if not isinstance(values, tuple):
        return values
    return torch.tensor(values, device=latents.device).reshape(-1, *[1] * (latents.ndim - 2))


@final
class ModuleDecoder:
    """A decoder given as a module. `contract`: of decoder.onnx at fp32; `module`: decoder(latents) -> image."""

    def __init__(self, network: nn.Module, code: bytes, words: Decoder, samples: Contract) -> None:
        self._code = code
        config = _config(network) if _method(network) else None
        _check_channels(network, config, samples)
        scaling, shift = constants(words, config)
        self._precision = words.precision
        self._upcast = bool(getattr(config, "force_upcast", False))
        name = type(network).__name__
        fitted = DecoderContract(name, samples.shape, (1, 1, 1), scaling=scaling, shift=shift)
        self.module = Decode(network, scaling, shift)
        self.contract = replace(fitted, image=self._image_shape(fitted, samples))

    def _image_shape(self, contract: DecoderContract, samples: Contract) -> tuple[int, ...]:
        sizes = (1, *contract.shape)
        try:
            shape = _without_numbers(self.module, sizes)
        except Exception:  # a table that is no buffer, a branch on a value: then it is run
            try:
                with prepared(self.module, torch.float32) as decode, torch.no_grad():
                    shape = list(decode(torch.zeros(sizes)).shape)
            except Exception as error:  # whatever the user's forward raises
                raise InputError(
                    f"decoder '{contract.name}': it fails with latents {list(sizes)}, samples of network "
                    f"'{samples.name}' ({first_line(error)}); give the decoder of this network"
                ) from error
        return image_shape(contract.name, shape, 1)

    @cached_property
    def digest(self) -> str:
        """sha256 hex of weights, code, contract and precision; nothing is exported."""
        words = json.dumps([self.contract.to_dict(), self._precision], sort_keys=True)
        content = content_digest(self.module, self._code)
        return hashlib.sha256(b"|".join((FORMAT.encode(), words.encode(), content))).hexdigest()

    def write(self, folder: Path, precision: str, progress: Progress) -> DecoderContract:
        """Write decoder.onnx for a network of `precision`, compare it with the module. Raises InputError."""
        safe = "fp32" if precision == "fp16" and self._upcast else precision
        contract = replace(self.contract, precision=self._precision or safe)
        progress(f"exporting the decoder {contract.name} to ONNX ({contract.precision})")
        dtype = DTYPES[contract.precision]
        path = folder / DECODER
        with prepared(self.module, dtype) as decode:
            export_module(decode, contract, path)
        plain = None if contract.precision == "fp32" else lambda case: self._evaluate(case, dtype)
        compare(path, contract, lambda case: self._evaluate(case, torch.float32), plain)
        return contract

    def _evaluate(self, case: Case, dtype: torch.dtype) -> Array:
        with prepared(self.module, dtype) as decode, torch.no_grad():
            return decode(torch.from_numpy(case.x).to(dtype)).float().numpy()


@torch.no_grad()
def _without_numbers(module: nn.Module, sizes: tuple[int, ...]) -> list[int]:
    """The shape that a module returns for float32 input of `sizes`, on meta tensors: nothing is computed."""

    def empty(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device="meta", dtype=torch.float32 if tensor.is_floating_point() else None)

    held = {name: empty(one) for name, one in (*module.named_parameters(), *module.named_buffers())}
    return list(torch.func.functional_call(module, held, (torch.empty(sizes, device="meta"),)).shape)


def constants(words: Decoder, config: Any) -> tuple[Constant, Constant]:
    """(scaling, shift): what was said, else what the autoencoder's config says, else 1 and 0."""
    scaling, shift = _said(config, "scaling_factor", 1.0), _said(config, "shift_factor", 0.0)
    mean, deviation = _said(config, "latents_mean", None), _said(config, "latents_std", None)
    if mean is not None and deviation is not None:
        scaling, shift = [scaling / one for one in deviation], mean
    return _constant(words.scaling, scaling), _constant(words.shift, shift)


def _constant(given: Any, found: Any) -> Constant:
    chosen = found if given is None else given
    return tuple(chosen) if isinstance(chosen, Sequence) else chosen


def _said(config: Any, name: str, otherwise: Any) -> Any:
    value = getattr(config, name, None)
    return otherwise if value is None else value


def _check_channels(network: nn.Module, config: Any, samples: Contract) -> None:
    channels = _said(config, "latent_channels", None)
    if channels is not None and channels != samples.shape[0]:
        raise InputError(
            f"decoder '{type(network).__name__}': it takes latents of {channels} channels, samples of network "
            f"'{samples.name}' are {list(samples.shape)}; give the decoder of this network"
        )


def image_shape(name: str, shape: Sequence[int], batch: int) -> tuple[int, ...]:
    """[C, H, W] of what a decoder made of a batch. Raises InputError when that is no image for each sample."""
    if len(shape) != 4 or shape[0] != batch:
        raise InputError(
            f"decoder '{name}': it returns {list(shape)} for a batch of {batch}, expected images [{batch}, C, H, W]"
        )
    return tuple(shape[1:])
