"""pfdiff: diffusion models sampled in a handful of network evaluations, compiled to a table and one fused update.

`compile` makes a sampler's table, `build` an engine directory from a network, `load` opens one. Names are imported
when first used, so `import pfdiff` costs neither torch nor onnxruntime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .engine.version import __version__

if TYPE_CHECKING:
    from .engine.api import Engine as Engine
    from .engine.api import load as load
    from .engine.backends.abstract import CudaOptions as CudaOptions
    from .engine.bulk.generate import generate as generate
    from .engine.compiler.compile import compile as compile
    from .engine.compiler.program import Program as Program
    from .engine.contract.condition import Condition as Condition
    from .engine.contract.contract import Contract as Contract
    from .engine.control import Controller as Controller
    from .engine.errors import BackendError as BackendError
    from .engine.errors import EngineFileError as EngineFileError
    from .engine.errors import InputError as InputError
    from .engine.errors import PfdiffError as PfdiffError
    from .engine.runtime.noise import noise as noise
    from .export.build import build as build
    from .export.decoders.options import Decoder as Decoder
    from .export.diffusers_scheduler import PFDiffScheduler as PFDiffScheduler
    from .export.network import Network as Network
    from .export.policies.options import Policy as Policy
    from .quality.compare import compare as compare
    from .quality.evaluate import evaluate as evaluate
    from .quality.tune import tune as tune


# Public name -> the module that holds it.
_HOME = {
    "BackendError": "engine.errors",
    "Condition": "engine.contract.condition",
    "Contract": "engine.contract.contract",
    "Controller": "engine.control",
    "CudaOptions": "engine.backends.abstract",
    "Decoder": "export.decoders.options",
    "Engine": "engine.api",
    "EngineFileError": "engine.errors",
    "InputError": "engine.errors",
    "Network": "export.network",
    "PFDiffScheduler": "export.diffusers_scheduler",
    "PfdiffError": "engine.errors",
    "Policy": "export.policies.options",
    "Program": "engine.compiler.program",
    "build": "export.build",
    "compare": "quality.compare",
    "compile": "engine.compiler.compile",
    "evaluate": "quality.evaluate",
    "generate": "engine.bulk.generate",
    "load": "engine.api",
    "noise": "engine.runtime.noise",
    "tune": "quality.tune",
}
__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]  # the names above, by __getattr__


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pfdiff' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
