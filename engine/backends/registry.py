"""The backends by name: what each needs, what speaks against it, how it is opened.

A backend is a file. Its library is imported when the backend is opened or asked for, not before.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..contract.contract import QUANTISED
from ..errors import BackendError, InputError, did_you_mean

if TYPE_CHECKING:
    import torch

    from .abstract import Backend, NetworkFiles

# On a CPU. name: (file, class, library, how to get it)
BACKENDS = {
    "onnxruntime": ("onnxruntime_cpu", "OnnxRuntime", "onnxruntime", "pip install onnxruntime"),
    "openvino": ("openvino_cpu", "OpenVino", "openvino", "pip install 'pfdiff[openvino]'"),
    "torch": ("torch_cpu", "TorchModule", "torch", "pip install torch"),
}
ON_CUDA = ("tensorrt", "tensorrt_rtx", "torch", "onnxruntime")  # the best first
TENSORRT = {
    "tensorrt": ("tensorrt", "pip install 'pfdiff[tensorrt]'"),
    "tensorrt_rtx": ("tensorrt_rtx", "pip install 'pfdiff[rtx]'"),
}
NAMES = (*TENSORRT, "torch", "onnxruntime", "openvino")


def check_backend(name: str) -> None:
    """Raises InputError for an unknown name, BackendError for one whose library is not installed."""
    if name == "auto":
        return
    if name not in NAMES:
        hint = did_you_mean(str(name), NAMES)
        raise InputError(f"backend {name!r}, expected one of {', '.join(('auto', *NAMES))}{hint}")
    if not is_installed(name):
        library, remedy = _library(name)
        raise BackendError(f"backend '{name}' needs the package {library}, which is not installed; {remedy}")


def is_installed(name: str) -> bool:
    """Whether the library of a known backend can be imported; nothing is imported."""
    return find_spec(_library(name)[0]) is not None


def _library(name: str) -> tuple[str, str]:
    """The package a backend needs and how to get it."""
    return TENSORRT[name] if name in TENSORRT else BACKENDS[name][2:]


def check_precision(name: str, precision: str) -> None:
    """Raises InputError or BackendError when `name` cannot run `precision` on this CPU, before anything is exported."""
    check_backend(name)
    if name in TENSORRT:
        raise BackendError(f"backend '{name}' needs an NVIDIA GPU; give device='cuda' on a machine with one")
    if name == "openvino":
        from .openvino_cpu import cpu_precisions

        held = (*cpu_precisions(), "int8")
    else:
        held = {"onnxruntime": ("fp32", "fp16", "int8", "fp8"), "torch": ("fp32",)}[name]
    if precision not in held:
        raise BackendError(
            f"backend '{name}' has no {precision} on this CPU, only {', '.join(held)}; build with one of these"
        )


def choose_backend(precision: str) -> tuple[str, str]:
    """The default backend for a precision (fp32, fp16, bf16, int8, fp8) on a CPU, and why, in one line.

    Raises BackendError when none that is installed can run it.
    """
    if precision in QUANTISED:
        return _for_eight_bits(precision)
    if precision == "fp32":
        if is_installed("onnxruntime"):
            return "onnxruntime", "the default for fp32 on a CPU"
        if is_installed("openvino"):
            return "openvino", "fp32 on a CPU, and onnxruntime is not installed"
        raise BackendError("no backend for fp32 on a CPU; pip install onnxruntime")
    lacking = "openvino is not installed"
    if is_installed("openvino"):
        from .openvino_cpu import cpu_precisions

        if precision in cpu_precisions():
            return "openvino", f"this CPU computes in {precision} and openvino uses it"
        lacking = f"this CPU has no {precision} arithmetic for openvino ({', '.join(cpu_precisions())} only)"
    if precision == "fp16" and is_installed("onnxruntime"):
        return "onnxruntime", f"{lacking}; onnxruntime stores fp16 and computes mostly in fp32, slower than fp32 alone"
    raise BackendError(f"no backend runs {precision} here: {lacking}; build the engine with precision fp32")


def _for_eight_bits(precision: str) -> tuple[str, str]:
    if precision == "int8" and is_installed("openvino"):
        return "openvino", "it computes int8 convolutions whose outputs stay float32"
    if not is_installed("onnxruntime"):
        raise BackendError(f"no backend runs {precision} here: onnxruntime is not installed; pip install onnxruntime")
    if precision == "fp8":
        return (
            "onnxruntime",
            "a CPU has no fp8: values are rounded to it and computed in float32, slower than fp32 alone",
        )
    return "onnxruntime", "int8 on a CPU, and openvino is not installed"


def why_not(name: str, module: object, device: torch.device) -> str:
    """Why a backend cannot run on a CUDA device, in one clause; empty when nothing speaks against it."""
    if name not in ON_CUDA:
        return "it runs on the CPU only"
    if not is_installed(name):
        return f"not installed ({_library(name)[1]})"
    if name == "torch":
        return "" if module is not None else "it needs the module (module= of pfdiff.load)"
    if name == "onnxruntime":
        from .onnxruntime_cuda import why_not as onnxruntime_why_not

        return onnxruntime_why_not()
    from .tensorrt_cuda import why_not as tensorrt_why_not

    return tensorrt_why_not(name, device)


def open_backend(name: str, files: NetworkFiles, threads: int | None, device: torch.device | None = None) -> Backend:
    """Load the network of `files` with the backend `name` on a CUDA device, or on the CPU (the default).

    Raises InputError, BackendError (not installed, refuses the network or its precision).
    """
    check_backend(name)
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads={threads!r}, expected an integer of at least 1, or None for the backend's choice")
    if device is None or device.type == "cpu":
        if name in TENSORRT:
            raise BackendError(f"backend '{name}' needs an NVIDIA GPU; use backend onnxruntime on the CPU")
        file, kind, _, _ = BACKENDS[name]
        return getattr(import_module(f".{file}", __package__), kind)(files, threads)
    if name in TENSORRT:
        from .tensorrt_cuda import TensorRt

        return TensorRt(files, name, device)
    if name == "torch":
        from .torch_cuda import TorchCuda

        return TorchCuda(files, device)
    if name == "onnxruntime":
        from .onnxruntime_cuda import OnnxRuntimeCuda

        return OnnxRuntimeCuda(files, device)
    raise BackendError(f"backend '{name}' runs on the CPU only; give device='cpu'")
