"""The module itself on a CUDA device: cast as the exporter casts, NHWC where products run on tensor cores.

The module given stays as it is: a copy goes to the device. Its output is returned where it lies, so nothing is copied;
a module whose last layer leaves NHWC costs the one copy that puts it in order.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import final

import torch

from ..contract.contract import QUANTISED, AnyContract
from ..device import EXCLUSIVE, check_fits
from ..errors import BackendError, first_line
from ..streams import own_stream
from ..tensors import PRECISION_DTYPES
from .abstract import Buffers, Evaluate, NetworkFiles, OneByOne
from .casting import cast_copy, own_dtypes
from .compiling import compiled, compiled_like
from .group_norm import without_layout_copies
from .guided import Guided


@final
class TorchCuda(OneByOne[Callable[..., torch.Tensor]]):
    """module(*inputs) -> out in inference mode, in the engine's precision."""

    def __init__(self, files: NetworkFiles, device: torch.device) -> None:
        contract = files.contract
        if files.module is None:
            raise BackendError(
                f"backend 'torch' needs the module, and '{files.onnx.parent}' holds ONNX only; "
                "give module= to pfdiff.load, or use another backend"
            )
        if files.precision in QUANTISED:
            raise BackendError(f"backend 'torch' has no {files.precision}; use backend tensorrt, or build with bf16")
        self.name = "torch"
        self.device = device
        self.dtype = PRECISION_DTYPES[contract.precision]
        self.threads = None
        self.stream = (files.stream or own_stream(device)) if device.type == "cuda" else None
        self._tf32 = files.options.tf32
        nhwc = len(contract.shape) == 3 and (self.dtype != torch.float32 or self._tf32)
        module: Callable[..., torch.Tensor] = files.module
        if isinstance(module, torch.nn.Module):
            module = _on_device(module, self.dtype, device, nhwc)
        self.bytes_per_sample = self._measure(module, contract) if device.type == "cuda" else 0
        self._loaded = compiled(module, files, device)
        self._half: Callable[..., torch.Tensor] | None = None
        if isinstance(module, Guided):
            self.unit_scale = module.unit_scale
            self._half = compiled_like(self._loaded, module.conditional)
        words = [f"torch {torch.__version__}", _name(device), contract.precision]
        words += ["channels last"] * nhwc + ["TF32"] * self._tf32 + ["compiled"] * (self._loaded is not module)
        self.description = ", ".join(words)

    def _bound(self, module: Callable[..., torch.Tensor], buffers: Buffers, *, search: bool = True) -> Evaluate:
        inputs, shape, dtype, tf32 = buffers.inputs, buffers.out.shape, self.dtype, self._tf32
        if buffers.halved and self._half is not None:
            module = self._half

        def evaluate() -> torch.Tensor:
            with torch.inference_mode(), own_dtypes("cuda"), _arithmetic(tf32, search):
                out = module(*inputs)
                if out.shape != shape:
                    raise ValueError(f"the module returned {list(out.shape)}, expected {list(shape)}")
                return out.to(dtype).contiguous()  # neither does anything to a tensor that is right already

        return evaluate

    def _measure(self, module: Callable[..., torch.Tensor], contract: AnyContract) -> int:
        """Device bytes that each further sample of a batch takes: the peaks of batches 1 and 2, their difference."""
        if contract.fixed_batch:
            return self._peak(module, contract, contract.fixed_batch) // contract.fixed_batch
        return max(0, self._peak(module, contract, 2) - self._peak(module, contract, 1))

    def _peak(self, module: Callable[..., torch.Tensor], contract: AnyContract, batch: int) -> int:
        """The most bytes that one evaluation allocates, after one that loads the libraries.

        cuDNN does not search: trying algorithms takes up to a minute for each batch of a large network, and what they
        need for a while is not what an evaluation takes.
        """
        device = self.device
        evaluate = self._bound(module, Buffers.of(contract, batch, self.dtype, device), search=False)
        before = 0
        try:
            with EXCLUSIVE:
                for _ in range(2):
                    torch.cuda.synchronize(device)
                    torch.cuda.reset_peak_memory_stats(device)
                    before = torch.cuda.memory_allocated(device)
                    with torch.cuda.stream(self.stream):
                        evaluate()
                torch.cuda.synchronize(device)
        except Exception as error:  # whatever the user's module raises
            raise BackendError(f"backend 'torch': the module fails on {device}: {first_line(error)}") from error
        return torch.cuda.max_memory_allocated(device) - before

    def close(self) -> None:
        self._loaded = self._half = None


def _on_device(module: torch.nn.Module, dtype: torch.dtype, device: torch.device, nhwc: bool) -> torch.nn.Module:
    """A copy for evaluation; the weights are counted before anything is allocated."""
    if device.type == "cuda":
        width = torch.empty((), dtype=dtype).element_size()
        needed = sum(width * one.numel() for one in (*module.parameters(), *module.buffers()))
        check_fits("the network", needed, device)
    duplicate = cast_copy(module, dtype, device).eval()
    if nhwc:
        duplicate = duplicate.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        without_layout_copies(duplicate)
    return duplicate


@contextlib.contextmanager
def _arithmetic(tf32: bool, search: bool) -> Iterator[None]:
    """float32 products as asked for, cuDNN's fastest algorithms or its guess; torch's own settings stand again after.

    By default torch rounds float32 convolutions to TF32 and leaves matrix products alone. From 2.9 on it has a newer
    interface to these settings, where each operation may also inherit; compiled code still reads the older one.
    The settings are the process's, so one thread at a time: what another engine asks for must not be captured here.
    """
    read, write = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
    with EXCLUSIVE:
        newer = [(operation, read("cuda", operation)) for operation in ("conv", "rnn", "matmul")]
        _hear_announcements()
        older, cudnn = _older_settings(), _cudnn_settings()
        try:
            if older is not None:
                _set_older("high" if tf32 else "highest", tf32)
            for operation, _ in newer:
                write("cuda", operation, "tf32" if tf32 else "ieee")
            _set_cudnn(True, search, True)  # a data gradient, such as ConvTranspose2d, may add in any order
            yield
        finally:
            _set_cudnn(*cudnn)
            if older is not None:
                _set_older(*older)
            for operation, precision in newer:
                write("cuda", operation, precision)


def _older_settings() -> tuple[str, bool] | None:
    """Matrix products and convolutions in the older interface; None where torch refuses, since the newer was used."""
    try:
        return torch.get_float32_matmul_precision(), torch._C._get_cudnn_allow_tf32()
    except RuntimeError:
        return None


def _set_older(products: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(products)
    torch._C._set_cudnn_allow_tf32(convolutions)


def _cudnn_settings() -> tuple[bool, bool, bool]:
    """Whether cuDNN is used, searches for the fastest algorithm, and takes only those that are deterministic."""
    return torch._C._get_cudnn_enabled(), torch._C._get_cudnn_benchmark(), torch._C._get_cudnn_deterministic()


def _set_cudnn(enabled: bool, search: bool, deterministic: bool) -> None:
    torch._C._set_cudnn_enabled(enabled)
    torch._C._set_cudnn_benchmark(search)
    torch._C._set_cudnn_deterministic(deterministic)


@cache
def _hear_announcements() -> None:
    """torch announces the newer interface once, when the older is used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        older = _older_settings()
        if older is not None:
            _set_older(*older)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
