"""The module itself, in PyTorch on the CPU: for networks that no exporter takes, and to compare with.

An engine directory holds ONNX and never code, so the module has to be given: `pfdiff.build` keeps the one it was built
from, `pfdiff.load(..., module=...)` takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final
from weakref import WeakKeyDictionary

import torch

from ..contract.contract import Contract
from ..errors import BackendError
from .abstract import Buffers, Evaluate, NetworkFiles, OneByOne
from .casting import own_dtypes
from .guided import Guided, UnitScale

# How many open backends put each module into evaluation mode: the last to close puts it back.
_evaluated: WeakKeyDictionary[torch.nn.Module, int] = WeakKeyDictionary()


@final
class TorchModule(OneByOne[Callable[..., torch.Tensor]]):
    """module(*inputs) -> out in inference mode, float32, put into evaluation mode until `close`.

    `threads` is PyTorch's own number of threads, one for the whole process.
    """

    def __init__(self, files: NetworkFiles, threads: int | None) -> None:
        if files.module is None:
            raise BackendError(
                f"backend 'torch' needs the module, and '{files.onnx.parent}' holds ONNX only; "
                "give module= to pfdiff.load, or use backend onnxruntime"
            )
        if files.precision != "fp32":
            raise BackendError(f"backend 'torch' computes in fp32, the engine is {files.precision}; build with fp32")
        self._loaded = files.module
        self._scale = 0  # which condition is the scale of guidance
        if isinstance(files.module, Guided) and isinstance(files.contract, Contract):
            self.unit_scale = files.module.unit_scale
            self._scale = [one.name for one in files.contract.conditions].index(self.unit_scale.condition)
        modules = files.module.modules() if isinstance(files.module, torch.nn.Module) else ()
        self._trained = [one for one in modules if one.training or one in _evaluated]
        for one in self._trained:
            _evaluated[one] = _evaluated.get(one, 0) + 1
            one.training = False
        self.name = "torch"
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.threads = threads
        self.description = f"torch {torch.__version__}, CPU, fp32"

    def _bound(self, module: Callable[..., torch.Tensor], buffers: Buffers) -> Evaluate:
        threads, run = self.threads, module
        inputs, out = buffers.inputs, buffers.out
        if isinstance(module, Guided) and self.unit_scale is not None:
            run = self._halved_where_it_may(module, self.unit_scale, buffers)

        def evaluate() -> torch.Tensor:
            if threads is not None and torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            with torch.inference_mode(), own_dtypes("cpu"):
                result = run(*inputs)
                if result.shape != out.shape:
                    raise ValueError(f"the module returned {list(result.shape)}, expected {list(out.shape)}")
                out.copy_(result)
            return out

        return evaluate

    def _halved_where_it_may(self, module: Any, unit: UnitScale, buffers: Buffers) -> Callable[..., torch.Tensor]:
        """The guided module, which looks at the buffers first: the conditional half alone where every scale is 1."""
        assert buffers.t is not None
        known, scale, times = unit.known, buffers.conditions[self._scale].numpy(), buffers.t.numpy()

        def run(*inputs: torch.Tensor) -> torch.Tensor:
            return module.conditional(*inputs) if known(scale, times).all() else module(*inputs)

        return run

    def close(self) -> None:
        for one in self._trained:
            _evaluated[one] -= 1
            if not _evaluated[one]:
                del _evaluated[one]
                one.training = True
        self._loaded, self._trained = None, []
