"""Layers by name: a judge's, a user's module's or ONNX file's, or the filter bank's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...engine.artifact import sha256_of
from ...engine.contract.contract import Contract
from ...engine.errors import InputError
from ...export.sources.module_call import load_factory
from ...export.sources.module_digest import content_digest
from ..distances.features import BATCH, SHIPPED, onnx_judge
from ..pictures.read import pictures_of
from .layers import BANK, Layers, filter_bank, of_module, of_onnx, of_steps, together

Model = TypeVar("Model", bound=nn.Module)
EXPECTED = f"fashion, fashion:second, an .onnx file, file.py:factory, a module, or {BANK} for no network at all"


def layers_of(source: str | nn.Module, contract: Contract, scale: tuple[float, float] = (-1.0, 1.0)) -> Layers:
    """The layers of that name for samples of the contract.

    scale: what the ends of the data's range become for the user's own networks. Raises InputError.
    """
    shape, (low, high) = contract.shape, contract.data_range
    if len(shape) != 3:
        raise InputError(f"features need samples [C, H, W], these are {list(shape)}; leave features out")
    if source == BANK:
        return filter_bank(shape[0])
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"features of a network need samples with a data range; take {BANK}, or leave features out")

    def scaled(x: Tensor) -> Tensor:
        return (x - low) * ((scale[1] - scale[0]) / (high - low)) + scale[0]

    if isinstance(source, nn.Module):
        return of_module(type(source).__name__, content_digest(source, b"").hex(), source, scaled)
    if source in SHIPPED:
        if shape != (1, 28, 28):
            raise InputError(f"features '{source}' take samples of 1x28x28, got {'x'.join(map(str, shape))}")
        return _shipped(source)
    if ".onnx" in source:
        session, names, digest = onnx_judge(source, scale)
        return of_onnx(source, digest, session, names, scaled)
    if ".py:" in source:
        module, code = load_factory(source)
        return of_module(source, content_digest(module, code).hex(), module, scaled)
    raise InputError(f"features '{source}' give no layers to refine on; expected {EXPECTED}")


def beside_filters(source: str | nn.Module, contract: Contract, scale: tuple[float, float] = (-1.0, 1.0)) -> Layers:
    """The layers of that name and of the filter bank, which sees contrast where a judge norms its maps."""
    if source == BANK:
        return layers_of(source, contract, scale)
    return together([filter_bank(contract.shape[0]), layers_of(source, contract, scale)])


def _shipped(source: str) -> Layers:
    """Of the two classifiers of Fashion-MNIST, on samples in -1..1."""
    if source == "fashion":
        from ...export.zoo.fashion_classifier import DEEP, WEIGHTS, load_classifier

        model = _frozen(load_classifier())
        steps: list[Callable[[Tensor], Tensor]] = [model.layers[:4], model.layers[4:DEEP], model.features_of_maps]
        return of_steps(source, sha256_of(WEIGHTS), steps)
    from ...export.zoo.fashion_second_judge import WEIGHTS as SECOND
    from ...export.zoo.fashion_second_judge import load_second_judge

    other = _frozen(load_second_judge())
    return of_steps(source, sha256_of(SECOND), [other.layers[:2], other.layers[2:], other.features_of_maps])


def _frozen(model: Model) -> Model:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def features_of_pictures(pictures: Any, layers: Layers, contract: Contract) -> NDArray[np.float32]:
    """Features [n, d] of real pictures, as `pfdiff.evaluate` takes them. Raises InputError."""
    low, high = contract.data_range
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError("pictures need samples with a data range; leave pictures out")
    pixels, _ = pictures_of(pictures)
    shape = (pixels.shape[3], *pixels.shape[1:3])
    if shape != contract.shape:
        raise InputError(f"pictures are {list(shape)}, samples {list(contract.shape)}; resize the pictures")
    found = []
    for first in range(0, len(pixels), BATCH):
        part = torch.from_numpy(np.ascontiguousarray(pixels[first : first + BATCH]))
        with torch.no_grad():
            x = part.movedim(3, 1).float() * ((high - low) / 255) + low
            found.append(layers(x)[-1].numpy())
    return np.concatenate(found)
