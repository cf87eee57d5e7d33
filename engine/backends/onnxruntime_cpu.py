"""ONNX Runtime on the CPU: the graph's own dtypes, every buffer bound by its address, nothing copied."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import onnxruntime
import torch

from ..errors import BackendError, first_line
from ..tensors import PRECISION_DTYPES
from .abstract import Buffers, Evaluate, NetworkFiles, OneByOne

PRECISIONS = ("fp32", "fp16")
ELEMENT_TYPES: dict[torch.dtype, Any] = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: 16,  # onnx.TensorProto.BFLOAT16: NumPy has no such type
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.bool: np.bool_,
}
ERRORS_ONLY = 3
# ONNX Runtime 1.32 rounds the bias of a layer between Q/DQ nodes to multiples of two scales' product. As a float16 that
# has no digits left: a decoder in fp8 was wrong by 90 %. Its integer kernels are for float32 graphs alone.
NO_INTEGER_KERNELS = ("session.disable_quant_qdq", "1")


@final
class OnnxRuntime(OneByOne[onnxruntime.InferenceSession]):
    """`network.onnx` in an InferenceSession of the CPU provider, all graph optimisations on."""

    def __init__(self, files: NetworkFiles, threads: int | None) -> None:
        contract = files.contract
        if contract.precision not in PRECISIONS:
            raise BackendError(
                f"onnxruntime has no {contract.precision} on a CPU; use backend openvino, or build with precision fp32"
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        if contract.precision == "fp16":
            options.add_session_config_entry(*NO_INTEGER_KERNELS)
        try:
            session = onnxruntime.InferenceSession(str(files.onnx), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base of their own
            raise BackendError(f"onnxruntime refuses '{files.onnx}': {first_line(error)}") from error
        self._names = contract.inputs
        self._output = contract.output
        held = [one.name for one in session.get_inputs()], [one.name for one in session.get_outputs()]
        if sorted(held[0]) != sorted(self._names) or self._output not in held[1]:
            takes, gives, named = (", ".join(names)[:60] for names in (*held, self._names))
            raise BackendError(
                f"'{files.onnx}' takes {takes} and gives {gives}; "
                f"the contract says {named} and {self._output[:60]}; rebuild the engine"
            )
        self._loaded = session
        self.name = "onnxruntime"
        self.device = torch.device("cpu")
        self.dtype = PRECISION_DTYPES[contract.precision]
        self.threads = threads
        self.description = f"onnxruntime {onnxruntime.__version__}, CPU, {files.precision}"

    def _bound(self, session: onnxruntime.InferenceSession, buffers: Buffers) -> Evaluate:
        binding = session.io_binding()
        for name, tensor in zip(self._names, buffers.inputs, strict=True):
            element = ELEMENT_TYPES[tensor.dtype]
            binding.bind_input(name, "cpu", 0, element, list(tensor.shape), tensor.data_ptr())
        out = buffers.out
        binding.bind_output(self._output, "cpu", 0, ELEMENT_TYPES[out.dtype], list(out.shape), out.data_ptr())
        run = session.run_with_iobinding

        def evaluate() -> torch.Tensor:
            run(binding)
            return out

        return evaluate

    def close(self) -> None:
        self._loaded = None
