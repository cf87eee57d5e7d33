"""OpenVINO on the CPU. It picks bf16 by itself where the CPU has it, so the precision is always said and read back.

x and out are float32 here whatever the network's dtype: the conversion is part of the compiled graph. Where a CPU lacks
a precision OpenVINO computes in another one without a word, so that is refused before the network is compiled.

The network is rewritten (`openvino_rewrites`) and compiled once for every batch size, when that is first bound.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, final

import openvino
import torch

from ..contract.contract import AnyContract, Contract
from ..errors import BackendError, first_line, printable
from .abstract import Buffers, Evaluate, NetworkFiles, OneByOne
from .openvino_rewrites import rewrite
from .openvino_time import time_in_float32

HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
CAPABILITIES = {"fp32": "FP32", "fp16": "FP16", "bf16": "BF16"}


@lru_cache(maxsize=1)
def _core() -> Any:
    return openvino.Core()


@lru_cache(maxsize=1)
def cpu_precisions() -> tuple[str, ...]:
    """Those of fp32, fp16 and bf16 that this CPU computes in, as OpenVINO reports."""
    reported = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(precision for precision, name in CAPABILITIES.items() if name in reported)


def reason(error: BaseException) -> str:
    """What OpenVINO's exception says in one line: the operations without a conversion, else the first that is no place.

    Its first lines are places in its own source, `Exception from src/inference/src/cpp/core.cpp:84:`.
    """
    lines = [line.strip(" -") for line in str(error).splitlines()]
    told = [one for one in lines if one.startswith(("No conversion rule found", "Conversion is failed for"))]
    others = [one for one in lines if one and not one.startswith("Exception from ")]
    return printable("; ".join(told) or next(iter(others), first_line(error)))[:200]


@final
class OpenVino(OneByOne[Any]):
    """`network.onnx` compiled for the CPU at the engine's precision, one stream, lowest latency, all shapes static."""

    def __init__(self, files: NetworkFiles, threads: int | None) -> None:
        contract = files.contract
        if contract.precision not in cpu_precisions():
            raise BackendError(
                f"openvino: this CPU has no {contract.precision} arithmetic, only {', '.join(cpu_precisions())}; "
                "build the engine with precision fp32"
            )
        hint = HINTS[contract.precision]
        self._options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # it gains nothing, and two processes of one thread each would share a core
            # OpenVINO 2026.4 dies of SIGSEGV in compile_model when it fuses the attention of a graph whose shapes are
            # all static (seen on AVX-512 without AMX).
            "SNIPPETS_MODE": "DISABLE",
        }
        if threads is not None:
            self._options["INFERENCE_NUM_THREADS"] = threads
        self._files = files
        try:
            self._loaded = _with_float32_ends(_core().read_model(str(files.onnx)), contract)
        except RuntimeError as error:
            raise BackendError(f"openvino refuses '{files.onnx}': {reason(error)}") from error
        self._compiled: dict[int, Any] = {}
        batch = files.artifact.batch[0] if files.artifact else contract.fixed_batch or 1
        used = self._for_batch(self._loaded, batch).get_property("INFERENCE_PRECISION_HINT").to_string()
        if used != hint:
            raise BackendError(f"openvino would compute in {used} where {hint} was asked for; use backend onnxruntime")
        self._names = contract.inputs
        self._output = contract.output
        self.name = "openvino"
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.threads = threads
        self.description = f"openvino {openvino.__version__.split('-')[0]}, CPU, {files.precision}"

    def _for_batch(self, loaded: Any, batch: int) -> Any:
        """The network compiled for one batch size, which OpenVINO computes 1.1 to 2 times faster than any batch."""
        if batch not in self._compiled:
            model = loaded.clone()
            try:
                model.reshape({one.any_name: _with_batch(one.partial_shape, batch) for one in model.inputs})
                contract = self._files.contract
                if contract.precision != "fp32" and isinstance(contract, Contract):
                    time_in_float32(model, contract.time)
                rewrite(model, contract.precision)
                self._compiled[batch] = _core().compile_model(model, "CPU", self._options)
            except RuntimeError as error:
                raise BackendError(f"openvino refuses '{self._files.onnx}': {reason(error)}") from error
        return self._compiled[batch]

    def _bound(self, loaded: Any, buffers: Buffers) -> Evaluate:
        request = self._for_batch(loaded, len(buffers.x)).create_infer_request()
        for name, tensor in zip(self._names, buffers.inputs, strict=True):
            request.set_tensor(name, _shared(tensor))
        request.set_tensor(self._output, _shared(buffers.out))
        run, out = request.infer, buffers.out

        def evaluate() -> torch.Tensor:
            run(share_outputs=True)
            return out

        return evaluate

    def close(self) -> None:
        self._loaded = None
        self._compiled.clear()


def _with_float32_ends(model: Any, contract: AnyContract) -> Any:
    ends = openvino.preprocess.PrePostProcessor(model)
    if contract.input_dtype != "int64":
        ends.input(contract.input).tensor().set_element_type(openvino.Type.f32)
    ends.output(contract.output).tensor().set_element_type(openvino.Type.f32)
    return ends.build()


def _with_batch(shape: Any, batch: int) -> Any:
    """A shape whose first dimension, where it is any, is `batch`."""
    return [batch if place == 0 and one.is_dynamic else one for place, one in enumerate(shape)]


def _shared(tensor: torch.Tensor) -> Any:
    """An OpenVINO tensor on the memory of a torch tensor."""
    if tensor.dtype == torch.bfloat16:
        return openvino.Tensor(tensor.view(torch.int16).numpy(), openvino.Shape(tensor.shape), openvino.Type.bf16)
    return openvino.Tensor(tensor.numpy(), shared_memory=True)
