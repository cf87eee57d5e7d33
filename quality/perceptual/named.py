"""Layers by name: a judge's, a user's module's, or the filter bank's."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from ...engine.artifact import sha256_of
from ...engine.errors import InputError
from ...export.sources.module_call import load_factory
from ...export.sources.module_digest import content_digest
from .layers import BANK, Layers, filter_bank, of_module, of_steps

Model = TypeVar("Model", bound=nn.Module)


def layers_of(source: str, channels: int, data_range: tuple[float, float]) -> Layers:
    """`fashion`, `fashion:second`, file.py:factory or `filters`, of samples in `data_range`. Raises InputError."""
    if source == BANK:
        return filter_bank(channels)
    if source == "fashion":
        from ...export.zoo.fashion_classifier import DEEP, WEIGHTS, load_classifier

        model = _frozen(load_classifier())
        return of_steps(source, sha256_of(WEIGHTS), [model.layers[:4], model.layers[4:DEEP], model.features_of_maps])
    if source == "fashion:second":
        from ...export.zoo.fashion_second_judge import WEIGHTS as SECOND
        from ...export.zoo.fashion_second_judge import load_second_judge

        other = _frozen(load_second_judge())
        return of_steps(source, sha256_of(SECOND), [other.layers[:2], other.layers[2:], other.features_of_maps])
    if ".py:" in source:
        module, code = load_factory(source)
        return of_module(source, content_digest(module, code).hex(), module, lambda x: x)
    raise InputError(f"features '{source}' give no gradients; expected fashion, file.py:factory or {BANK}")


def _frozen(model: Model) -> Model:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model
