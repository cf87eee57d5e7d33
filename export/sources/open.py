"""A described network as a source: what can be evaluated and written as network.onnx."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ...engine.contract import Condition
from ...engine.errors import InputError
from ..described import Described
from .from_module import ModuleSource
from .from_onnx import OnnxSource
from .module_call import load_factory


def open_source(described: Described) -> ModuleSource | OnnxSource:
    """The network read and tried. Raises InputError, one line, when it does not fit its description."""
    source = described.source
    if isinstance(source, nn.Module):
        return ModuleSource(source, b"", described)
    if source.endswith(".onnx"):
        for name, one in described.conditions.items():
            if not isinstance(one, Condition):
                raise InputError(f"condition '{name}' of an ONNX file: got {type(one).__name__}, expected a Condition")
        return OnnxSource(Path(source), described)
    module, code = load_factory(source)
    return ModuleSource(module, code, described)
