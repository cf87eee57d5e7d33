"""ONNX Runtime's CUDA provider: every buffer bound by its address, every kernel on our stream.

It is never captured in a graph. Concatenations and splits of unequal widths, and products that broadcast, read arrays
in host memory of its own (ONNX Runtime's `CudaAsyncBuffer`), which it frees when the thread that captured them has
ended: later replays would read whatever stands there then. It is told not to wait for the stream after a run; since
that also keeps those arrays, each `WAIT_EVERY`th run waits and frees them.
"""

from __future__ import annotations

from typing import final

import onnxruntime
import torch

from ..errors import BackendError, first_line
from ..streams import own_stream
from ..tensors import PRECISION_DTYPES
from .abstract import Buffers, Evaluate, NetworkFiles, OneByOne
from .onnxruntime_cpu import ELEMENT_TYPES, ERRORS_ONLY, NO_INTEGER_KERNELS

PROVIDER = "CUDAExecutionProvider"
WAIT_EVERY = 16  # runs: at four concatenations of a latent U-Net, 46 KB are kept by each (ONNX Runtime's sources)


@final
class OnnxRuntimeCuda(OneByOne[onnxruntime.InferenceSession]):
    """`network.onnx` in an InferenceSession of the CUDA provider, TF32 only if asked for."""

    def __init__(self, files: NetworkFiles, device: torch.device) -> None:
        contract = files.contract
        self.stream = files.stream or own_stream(device)
        settings = {
            "device_id": str(device.index or 0),
            "user_compute_stream": str(self.stream.cuda_stream),
            "use_tf32": "1" if files.options.tf32 else "0",
        }
        session = _session(files, settings)
        self._names = contract.inputs
        self._output = contract.output
        self._loaded = session
        self._waiting = onnxruntime.RunOptions()
        self._quick = onnxruntime.RunOptions()
        self._quick.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._runs = 0
        self.not_capturable = "ONNX Runtime keeps arrays of its own in host memory that a replay would read"
        self.name = "onnxruntime"
        self.device = device
        self.dtype = PRECISION_DTYPES[contract.precision]
        self.threads = None
        self.bytes_per_sample = 0  # its arena grows as it needs; it does not say
        gpu = torch.cuda.get_device_name(device)
        self.description = f"onnxruntime {onnxruntime.__version__}, {gpu}, {files.precision}"

    def _bound(self, session: onnxruntime.InferenceSession, buffers: Buffers) -> Evaluate:
        binding, index, out = session.io_binding(), self.device.index or 0, buffers.out
        for name, tensor in zip(self._names, buffers.inputs, strict=True):
            element = ELEMENT_TYPES[tensor.dtype]
            binding.bind_input(name, "cuda", index, element, list(tensor.shape), tensor.data_ptr())
        element = ELEMENT_TYPES[out.dtype]
        binding.bind_output(self._output, "cuda", index, element, list(out.shape), out.data_ptr())
        run = session.run_with_iobinding

        def evaluate() -> torch.Tensor:
            self._runs += 1
            run(binding, self._quick if self._runs % WAIT_EVERY else self._waiting)
            return out

        return evaluate

    def close(self) -> None:
        self._loaded = None


def _session(files: NetworkFiles, settings: dict[str, str]) -> onnxruntime.InferenceSession:
    """A session of the CUDA provider, with its NHWC kernels where products run on tensor cores and it takes them.

    Builds before 1.20 have none, others none for some networks. Raises BackendError.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    if files.contract.precision == "fp16":
        options.add_session_config_entry(*NO_INTEGER_KERNELS)
    nhwc = files.precision == "fp16" or (files.precision == "fp32" and files.options.tf32)
    problem = BackendError()
    for one in ({**settings, "prefer_nhwc": "1"}, settings) if nhwc else (settings,):
        providers = [(PROVIDER, one), "CPUExecutionProvider"]
        try:  # by itself it would go on without CUDA, and say so on the standard output
            session = onnxruntime.InferenceSession(str(files.onnx), options, providers=providers, enable_fallback=0)
        except Exception as error:  # its exceptions have no common base of their own
            problem = BackendError(f"onnxruntime refuses '{files.onnx}': {first_line(error)}")
            problem.__cause__ = error
            continue
        if session.get_providers()[0] == PROVIDER:
            return session
        problem = BackendError(
            "onnxruntime cannot start its CUDA provider (its CUDA and cuDNN are not those of this machine); "
            "install an onnxruntime-gpu for this CUDA, or use backend tensorrt or torch"
        )
    raise problem


def why_not() -> str:
    """Why the CUDA provider cannot run, in one clause; empty when it is there."""
    if PROVIDER in onnxruntime.get_available_providers():
        return ""
    return f"onnxruntime {onnxruntime.__version__} is a build without CUDA (pip install onnxruntime-gpu)"
