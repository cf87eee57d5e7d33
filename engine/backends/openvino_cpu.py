"""OpenVINO on the CPU. It picks bf16 by itself where the CPU has it, so the precision is always said and read back.

x and out are float32 here whatever the network's dtype: the conversion is part of the compiled graph. Where a CPU lacks
a precision OpenVINO computes in another one without a word, so that is refused before the network is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, final

import openvino
import torch

from ..errors import BackendError
from .abstract import Backend, Buffers, Evaluate, Source, first_line

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


@final
class OpenVino(Backend):
    """`network.onnx` compiled for the CPU at the engine's precision, one stream, lowest latency."""

    def __init__(self, source: Source, threads: int | None) -> None:
        contract = source.contract
        if contract.precision not in cpu_precisions():
            raise BackendError(
                f"openvino: this CPU has no {contract.precision} arithmetic, only {', '.join(cpu_precisions())}; "
                "build the engine with precision fp32"
            )
        hint = HINTS[contract.precision]
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            model = _with_float32_ends(_core().read_model(str(source.onnx)), contract.input, contract.output)
            # OpenVINO 2026.4 dies of SIGSEGV in compile_model when it fuses the attention of a graph whose shapes are
            # all static (seen on AVX-512 without AMX). With a dynamic batch it does not, at the same speed.
            if not model.is_dynamic():
                options["SNIPPETS_MODE"] = "DISABLE"
            compiled = _core().compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise BackendError(f"openvino refuses '{source.onnx}': {first_line(error)}") from error
        used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if used != hint:
            raise BackendError(f"openvino would compute in {used} where {hint} was asked for; use backend onnxruntime")
        self._compiled: Any = compiled
        self._names = contract.inputs
        self._output = contract.output
        self.name = "openvino"
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.threads = threads
        self.description = f"openvino {openvino.__version__.split('-')[0]}, CPU, {contract.precision}"

    def bind(self, sets: Sequence[Buffers]) -> list[Evaluate]:
        if self._compiled is None:
            raise BackendError("this backend is closed; load the engine again")
        return [self._bound(buffers) for buffers in sets]

    def _bound(self, buffers: Buffers) -> Evaluate:
        request = self._compiled.create_infer_request()
        for name, tensor in zip(self._names, buffers.inputs, strict=True):
            request.set_tensor(name, _shared(tensor))
        request.set_tensor(self._output, _shared(buffers.out))
        run, out = request.infer, buffers.out

        def evaluate() -> torch.Tensor:
            run(share_outputs=True)
            return out

        return evaluate

    def close(self) -> None:
        self._compiled = None


def _with_float32_ends(model: Any, x: str, out: str) -> Any:
    ends = openvino.preprocess.PrePostProcessor(model)
    ends.input(x).tensor().set_element_type(openvino.Type.f32)
    ends.output(out).tensor().set_element_type(openvino.Type.f32)
    return ends.build()


def _shared(tensor: torch.Tensor) -> Any:
    """An OpenVINO tensor on the memory of a torch tensor."""
    if tensor.dtype == torch.bfloat16:
        return openvino.Tensor(tensor.view(torch.int16).numpy(), openvino.Shape(tensor.shape), openvino.Type.bf16)
    return openvino.Tensor(tensor.numpy(), shared_memory=True)
