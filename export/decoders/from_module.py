"""A decoder given as a module or an AutoencoderKL: exported with its scaling and shift, compared like a network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from ...engine.artifact import DECODER
from ...engine.contract.contract import Contract, DecoderContract
from ...engine.errors import InputError
from ...engine.progress import Lines
from ...engine.tensors import PRECISION_DTYPES
from ..check import Array, TrialInputs, check_export
from ..pipelines.reread import Reading, Reread, without_numbers
from ..pipelines.saved_models import load_autoencoder
from ..sources.module_call import pick_output
from ..sources.module_digest import content_digest
from ..to_onnx import export_module, named_line, prepared
from .autoencoders import one_output
from .options import FORMAT, Constant, Decoder, constants, image_shape, said


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


def decode_of(network: nn.Module, options: Decoder) -> Decode:
    """With the constants that the options or its config say. Raises InputError."""
    network = one_output(network)
    return Decode(network, *constants(options, _config(network) if _method(network) else None))


@final
class Autoencoder:
    """A folder of one of diffusers' autoencoders: read, described, and freed until it is exported.

    network: as it was read. content: of the digest. shapes: tensors without numbers in place of those of `module`.
    """

    def __init__(self, folder: Path, options: Decoder) -> None:
        reading = Reading(lambda: load_autoencoder(folder), (folder,))
        self.network = reading.read()
        self.module = decode_of(self.network, options)
        self.content = content_digest(self.module, b"")
        self.shapes = without_numbers(_tensors(self.module))
        self.weights = Reread([(self.network, reading)])
        self.weights.free()


@final
class ModuleDecoder:
    """A decoder given as a module. `contract`: of decoder.onnx at fp32; `module`: decoder(latents) -> image."""

    def __init__(self, source: nn.Module | Autoencoder, code: bytes, options: Decoder, samples: Contract) -> None:
        self._code = code
        self._read = source if isinstance(source, Autoencoder) else None
        network = source.network if isinstance(source, Autoencoder) else source
        name = type(network).__name__
        self.module = source.module if isinstance(source, Autoencoder) else decode_of(network, options)
        network = self.module.network
        config = _config(network) if _method(network) else None
        _check_channels(network, config, samples)
        self._precision = options.precision
        self._upcast = bool(getattr(config, "force_upcast", False))
        scaling, shift = self.module.scaling, self.module.shift
        fitted = DecoderContract(name, samples.shape, (1, 1, 1), scaling=scaling, shift=shift)
        self.contract = replace(fitted, image=self._image_shape(fitted, samples))

    def _image_shape(self, contract: DecoderContract, samples: Contract) -> tuple[int, ...]:
        sizes = (1, *contract.shape)
        held = self._read.shapes if self._read else without_numbers(_tensors(self.module))
        try:
            with torch.no_grad():
                made = torch.func.functional_call(self.module, held, (torch.empty(sizes, device="meta"),))
            shape = list(made.shape)
        except Exception:  # a table that is no buffer, a branch on a value: then it is run
            try:
                with prepared(self.whole(), torch.float32) as decode, torch.no_grad():
                    shape = list(decode(torch.zeros(sizes)).shape)
            except Exception as error:  # whatever the user's forward raises
                raise InputError(
                    f"decoder '{contract.name}': it fails with latents {list(sizes)}, samples of network "
                    f"'{samples.name}' ({named_line(error)}); give the decoder of this network"
                ) from error
        return image_shape(contract.name, shape, 1)

    @cached_property
    def digest(self) -> str:
        """sha256 hex of weights, code, contract and precision; nothing is exported."""
        words = json.dumps([self.contract.to_dict(), self._precision], sort_keys=True)
        content = self._read.content if self._read else content_digest(self.module, self._code)
        return hashlib.sha256(b"|".join((FORMAT.encode(), words.encode(), content))).hexdigest()

    def precision_for(self, precision: str) -> str:
        """Of the decoder beside a network of `precision`: its own, or fp32 where fp16 is not enough for it."""
        return self._precision or ("fp32" if precision == "fp16" and self._upcast else precision)

    def write(self, folder: Path, precision: str, progress: Lines) -> DecoderContract:
        """Write decoder.onnx for a network of `precision`, compare it with the module. Raises InputError."""
        contract = replace(self.contract, precision=self.precision_for(precision))
        progress(f"exporting the decoder {contract.name} to ONNX ({contract.precision})")
        dtype = PRECISION_DTYPES[contract.precision]
        path = folder / DECODER
        with prepared(self.whole(), dtype) as decode:
            export_module(decode, contract, path)
        plain = None if contract.precision == "fp32" else lambda case: self._evaluate(case, dtype)
        check_export(path, contract, lambda case: self._evaluate(case, torch.float32), plain)
        return contract

    def whole(self) -> Decode:
        """The module with its weights, read again if they were freed. Raises InputError where that cannot be."""
        if self._read:
            self._read.weights.restore()
        return self.module

    def free(self) -> None:
        """Free weights that were read from files."""
        if self._read:
            self._read.weights.free()

    def _evaluate(self, case: TrialInputs, dtype: torch.dtype) -> Array:
        with prepared(self.whole(), dtype) as decode, torch.no_grad():
            return decode(torch.from_numpy(case.x).to(dtype)).float().numpy()


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _check_channels(network: nn.Module, config: Any, samples: Contract) -> None:
    channels = said(config, "latent_channels", None)
    if channels is not None and channels != samples.shape[0]:
        raise InputError(
            f"decoder '{type(network).__name__}': it takes latents of {channels} channels, samples of network "
            f"'{samples.name}' are {list(samples.shape)}; give the decoder of this network"
        )
