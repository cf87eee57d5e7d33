"""TensorRT 10 and 11 and TensorRT-RTX: the plan of an engine on a CUDA device, enqueued on the current stream.

One execution context serves the buffer sets of one `bind`, which run one after the other, so each captured graph has
its own. Activation memory is ours (`USER_MANAGED`), one block as large as the largest profile needs, for all buckets.
RTX specialises its kernels for the static shapes when a context is made, and its own graph strategy is off: the whole
schedule is captured by us.

Order, each answer checked: profile, shapes, inference of the rest, memory; then for each enqueue its addresses.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, final

import torch

from ..contract.contract import AnyContract
from ..device import capability, free_bytes, mib
from ..errors import BackendError, first_line
from ..plans.key import PLAN_DTYPES, load_flavour, plan_key
from ..plans.store import obtain_plan
from ..streams import own_stream
from ..tensors import PRECISION_DTYPES
from .abstract import Backend, Buffers, Evaluate, NetworkFiles


@final
class TensorRt(Backend):
    """`flavour` is tensorrt or tensorrt_rtx. The plan is read from `plans/` or built, with a message, by this call."""

    def __init__(self, files: NetworkFiles, flavour: str, device: torch.device) -> None:
        trt = load_flavour(flavour)
        contract, artifact, options = files.contract, files.artifact, files.options
        if artifact is None:
            raise BackendError(f"backend '{flavour}' needs an engine directory to keep its plans in; use pfdiff.load")
        gpu, chip = torch.cuda.get_device_name(device), capability(device)
        key = plan_key(
            artifact, flavour, chip, gpu, tf32=options.tf32, file=files.onnx.relative_to(artifact.path).as_posix()
        )
        plan = obtain_plan(artifact, key, trust=options.trust, say=_announce, progress=files.progress)
        self._trt = trt
        self._logger = trt.Logger(trt.Logger.ERROR)
        with torch.cuda.device(device):
            try:
                self._runtime = trt.Runtime(self._logger)
            except TypeError:  # pybind11 makes one of the null pointer that TensorRT returns
                reason = "its log has the reason, most often a driver that is too old"
                raise BackendError(f"{flavour} {trt.__version__} cannot start on {gpu}; {reason}") from None
            self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BackendError(
                f"{flavour} {trt.__version__} cannot load its plan on {gpu} ({chip}); "
                "delete the engine's plans/ folder and load again, or use backend torch"
            )
        self._names = contract.inputs
        self._output = contract.output
        self._buckets = artifact.batch
        self._flavour = flavour
        self.name = flavour
        self.device = device
        self.stream = files.stream or own_stream(device)
        self._check_dtypes(contract)
        self._memory = self._allocate()
        self.dtype = PRECISION_DTYPES[contract.precision]
        self.threads = None
        self.bytes_per_sample = 0  # activation memory is allocated above, once for all buckets
        tf32 = ", TF32" if options.tf32 else ""
        self.description = f"{flavour} {trt.__version__}, {gpu}, {files.precision}{tf32}"

    def bind(self, sets: Sequence[Buffers]) -> list[Evaluate]:
        if self._engine is None:
            raise BackendError("this backend is closed; load the engine again")
        batch = sets[0].x.shape[0]
        if batch not in self._buckets:
            held = ", ".join(map(str, self._buckets))
            raise BackendError(f"batch {batch} is no bucket of this plan; it has {held}")
        with torch.cuda.device(self.device):
            context = self._new_context()
            self._prepare(context, sets[0], batch)
        return [self._enqueue(context, buffers) for buffers in sets]

    def _new_context(self) -> Any:
        """An execution context without memory of its own."""
        trt, engine = self._trt, self._engine
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._flavour == "tensorrt_rtx":
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(strategy)
        if context is None:
            raise BackendError(f"{self._flavour} cannot make an execution context; too little device memory is free")
        return context

    def _prepare(self, context: Any, buffers: Buffers, batch: int) -> None:
        """Profile, shapes, inference, memory, in this order; after it only addresses and the stream may change."""
        stream = torch.cuda.current_stream(self.device)
        if not context.set_optimization_profile_async(self._buckets.index(batch), stream.cuda_stream):
            raise BackendError(f"{self._flavour} refuses the profile of batch {batch}; delete plans/ and load again")
        for name, tensor in zip(self._names, buffers.inputs, strict=True):
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise BackendError(f"{self._flavour} refuses shape {list(tensor.shape)} for '{name}'")
        missing = context.infer_shapes()
        if missing:
            raise BackendError(f"{self._flavour} lacks the shapes of {', '.join(missing)}")
        needed = context.update_device_memory_size_for_shapes()
        if not needed and self._engine.device_memory_size_v2:  # TensorRT's answer when something is wrong
            raise BackendError(
                f"{self._flavour} cannot tell how much memory batch {batch} needs; its log has the reason"
            )
        if needed > self._memory.numel():
            raise BackendError(
                f"{self._flavour} needs {needed} bytes of activations, its plan said {self._memory.numel()}"
            )
        context.set_device_memory(self._memory.data_ptr(), self._memory.numel())
        stream.synchronize()
        if self._flavour == "tensorrt_rtx" and not context.is_stream_capturable(stream.cuda_stream):
            self.not_capturable = "TensorRT-RTX says that this network cannot be captured"

    def _allocate(self) -> torch.Tensor:
        """One block of activation memory for all buckets. Raises BackendError, naming the largest that fits."""
        sizes = [self._engine.get_device_memory_size_for_profile_v2(i) for i in range(len(self._buckets))]
        free = free_bytes(self.device)
        if max(sizes) > free:
            fitting = [bucket for bucket, size in zip(self._buckets, sizes, strict=True) if size <= free]
            remedy = f"the largest bucket that fits is {fitting[-1]}" if fitting else "no bucket fits"
            raise BackendError(
                f"{self._flavour} needs {mib(max(sizes))} of activations for batch {self._buckets[-1]} on "
                f"{self.device}, {mib(free)} are free; {remedy}, build with a smaller --batch"
            )
        return torch.empty(max(256, self._engine.device_memory_size_v2, *sizes), dtype=torch.uint8, device=self.device)

    def _enqueue(self, context: Any, buffers: Buffers) -> Evaluate:
        inputs = zip(self._names, buffers.inputs, strict=True)
        addresses = [(name, tensor.data_ptr()) for name, tensor in inputs]
        addresses.append((self._output, buffers.out.data_ptr()))
        device, out, flavour = self.device, buffers.out, self._flavour

        def evaluate() -> torch.Tensor:
            # The addresses are recorded with the enqueue: each evaluation of a captured schedule keeps its own.
            for name, address in addresses:
                if not context.set_tensor_address(name, address):
                    raise BackendError(f"{flavour} refuses the buffer of '{name}'")
            if not context.execute_async_v3(torch.cuda.current_stream(device).cuda_stream):
                raise BackendError(f"{flavour} cannot enqueue the network; its log has the reason")
            return out

        return evaluate

    def _check_dtypes(self, contract: AnyContract) -> None:
        for name, dtype in ((contract.input, contract.input_dtype), (contract.output, contract.precision)):
            held, expected = self._engine.get_tensor_dtype(name).name, PLAN_DTYPES[dtype]
            if held != expected:
                raise BackendError(
                    f"the plan's '{name}' is {held}, {dtype} means {expected}; delete plans/ and load again"
                )

    def close(self) -> None:
        self._engine = None
        self._memory = torch.empty(0, dtype=torch.uint8)


def _announce(line: str) -> None:
    warnings.warn(line, RuntimeWarning, stacklevel=5)


def why_not(flavour: str, device: torch.device) -> str:
    """Why this flavour cannot run on a device, in one clause; empty when it can."""
    try:
        trt = load_flavour(flavour)
    except BackendError as error:
        return first_line(error)
    chip = capability(device)
    if flavour == "tensorrt_rtx" and chip.upper() not in trt.ComputeCapability.__members__:
        return f"{flavour} {trt.__version__} does not support {chip}"
    return ""
