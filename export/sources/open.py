"""A described network as a source: what can be evaluated and written as network.onnx."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from ...engine.contract.condition import Condition
from ...engine.errors import InputError
from ..described import Described
from ..time_map import TimeMap
from .from_module import ModuleSource
from .from_onnx import OnnxSource
from .mapped_module import with_time_map
from .mapped_onnx import MappedOnnx
from .module_call import load_factory


def open_source(described: Described) -> ModuleSource | OnnxSource | MappedOnnx:
    """The network read and tried. Raises InputError, one line, when it does not fit its description."""
    opened = _opened(described)
    if described.time_map is None and not described.negated:
        return opened
    time_map = described.time_map or TimeMap(scale=described.time_scale)
    if isinstance(opened, ModuleSource):
        return with_time_map(opened, time_map, negated=described.negated)
    return MappedOnnx(opened, time_map, negated=described.negated)


def _opened(described: Described) -> ModuleSource | OnnxSource:
    source = described.source
    # A map stands in the graph in place of the scale.
    described = replace(described, time_scale=1.0) if described.negated else described
    if isinstance(source, nn.Module):
        return ModuleSource(source, b"", described)
    if source.endswith(".onnx"):
        for name, one in described.conditions.items():
            if not isinstance(one, Condition):
                raise InputError(f"condition '{name}' of an ONNX file: got {type(one).__name__}, expected a Condition")
        return OnnxSource(Path(source), described)
    module, code = load_factory(source)
    return ModuleSource(module, code, described)
