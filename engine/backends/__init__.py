"""Who evaluates the network. One backend a file; a library is imported only when its backend is opened or asked for."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..errors import BackendError, InputError

if TYPE_CHECKING:
    from .abstract import Backend, Source

# name: (file, class, library, how to get it)
BACKENDS = {
    "onnxruntime": ("ort", "OnnxRuntime", "onnxruntime", "pip install onnxruntime"),
    "openvino": ("openvino_cpu", "OpenVino", "openvino", "pip install 'pfdiff[openvino]'"),
    "torch": ("torch_module", "TorchModule", "torch", "pip install torch"),
}


def check_backend(name: str) -> None:
    """Raises InputError for an unknown name, BackendError for one whose library is not installed."""
    if name == "auto":
        return
    if name not in BACKENDS:
        raise InputError(f"backend {name!r}, expected one of auto, {', '.join(BACKENDS)}")
    if not is_installed(name):
        _, _, library, remedy = BACKENDS[name]
        raise BackendError(f"backend '{name}' needs the package {library}, which is not installed; {remedy}")


def is_installed(name: str) -> bool:
    """Whether the library of a known backend can be imported; nothing is imported."""
    return find_spec(BACKENDS[name][2]) is not None


def check_precision(name: str, precision: str) -> None:
    """Raises InputError or BackendError when `name` cannot run `precision` on this CPU, before anything is exported."""
    check_backend(name)
    if name == "openvino":
        from .openvino_cpu import cpu_precisions

        held = cpu_precisions()
    else:
        held = {"onnxruntime": ("fp32", "fp16"), "torch": ("fp32",)}[name]
    if precision not in held:
        raise BackendError(
            f"backend '{name}' has no {precision} on this CPU, only {', '.join(held)}; build with one of these"
        )


def choose_backend(precision: str, device: str) -> tuple[str, str]:
    """The backend that "auto" means for a precision (fp32, fp16, bf16) on `device` ("cpu"), and why, in one line.

    Raises BackendError when none that is installed can run it.
    """
    if device != "cpu":
        raise BackendError(f"device '{device}': the backends {', '.join(BACKENDS)} run on the CPU; give device='cpu'")
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


def open_backend(name: str, source: Source, threads: int | None) -> Backend:
    """Load the network of `source` with the backend `name`.

    Raises InputError, BackendError (not installed, refuses the network or its precision).
    """
    check_backend(name)
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads={threads!r}, expected an integer of at least 1, or None for the backend's choice")
    file, kind, _, _ = BACKENDS[name]
    return getattr(import_module(f".{file}", __name__), kind)(source, threads)
