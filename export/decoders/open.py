"""A decoder, whatever it came as, fitted to the samples of a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from ...engine.contract.contract import Contract
from ...engine.errors import InputError
from ..pipelines.hub import fetch, is_hub_id
from ..sources.module_call import load_factory
from .from_module import Autoencoder, ModuleDecoder
from .from_onnx import OnnxDecoder
from .options import USAGE, Decoder, parse_decoder

OpenedDecoder = ModuleDecoder | OnnxDecoder


def read_decoder(decoder: Decoder | nn.Module | str | Path) -> Decoder:
    """What is given, with an autoencoder's folder or hub id read: described, and freed again. Raises InputError."""
    if isinstance(decoder, str):
        decoder = parse_decoder(decoder)
    options = decoder if isinstance(decoder, Decoder) else Decoder(decoder)
    source = options.source
    if not isinstance(source, (str, Path)) or str(source).endswith(".onnx") or ".py:" in str(source):
        return options
    if is_hub_id(str(source)):
        source = fetch(str(source)).folder
    return replace(options, source=Autoencoder(Path(source), options)) if Path(source).is_dir() else options


def open_decoder(decoder: Decoder | nn.Module | str | Path, network: Contract) -> OpenedDecoder:
    """The decoder fitted to the samples of `network`. Raises InputError, one line, when it does not fit."""
    options = read_decoder(decoder)
    source = options.source
    if isinstance(source, (nn.Module, Autoencoder)):
        return ModuleDecoder(source, b"", options, network)
    if not isinstance(source, (str, Path)):
        raise InputError(f"decoder: got {type(source).__name__}, expected {USAGE}")
    if str(source).endswith(".onnx"):
        return OnnxDecoder(Path(source), options, network)
    if ".py:" in str(source):
        module, code = load_factory(str(source))
        return ModuleDecoder(module, code, options, network)
    raise InputError(f"decoder '{source}': not known; expected {USAGE}")
