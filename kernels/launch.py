"""One kernel, two ways to run it: compiled by Triton for a GPU, or interpreted on the CPU to test the same source.

Triton is optional. Where it cannot launch, the launchers of `step`, `noise` and `images` take the plain twin in
`eager`. The interpreter is chosen when a kernel is launched, by TRITON_INTERPRET=1, not when its module is imported, so
one process may interpret, launch and compile ahead of time.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import warnings
from collections.abc import Callable
from functools import cache, cached_property
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch

tl: Any = None  # triton.language; Any, since its stubs reject what its compiler accepts
if importlib.util.find_spec("triton") is not None:
    import triton.language as tl
if TYPE_CHECKING:
    from triton.language import constexpr
else:
    constexpr = getattr(tl, "constexpr", None)  # the annotation of a kernel's constants

__all__ = [
    "Kernel",
    "check_triton",
    "constexpr",
    "interpreted",
    "runs_triton",
    "tl",
    "triton_available",
    "why_not_triton",
]


def triton_available() -> bool:
    """Whether Triton is installed."""
    return tl is not None


def interpreted() -> bool:
    """Whether kernels are interpreted on the CPU: TRITON_INTERPRET=1 in the environment."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def runs_triton(tensor: torch.Tensor) -> bool:
    """Whether an op on this tensor launches its Triton kernel. The first one on a device tries."""
    if interpreted() and triton_available():
        return True
    return tensor.is_cuda and not why_not_triton(tensor.device)


@cache
def why_not_triton(device: torch.device) -> str:
    """Why kernels cannot be launched on a CUDA device, in one clause; empty when they can.

    Found out once, by a kernel that stores one number, and announced: Triton needs more than its package. At the first
    launch it compiles its own launcher in C, for which there must be a compiler, Python's headers and the driver.
    """
    problem = _problem(device)
    if problem:
        warnings.warn(
            f"{problem}; until then the fused kernels run as several plain torch operations",
            RuntimeWarning,
            stacklevel=4,
        )
    return problem


def check_triton(device: torch.device) -> None:
    """Try Triton where a loop is made, so that what is wrong is said then and not in the middle of a sample."""
    if device.type == "cuda":
        why_not_triton(device)


def _problem(device: torch.device) -> str:
    if not triton_available():
        return "Triton is not installed; pip install triton"
    try:
        stored = torch.zeros(1, dtype=torch.int32, device=device)
        PROBE.launch(1, (stored, 7), {})
        return "" if stored.item() == 7 else "Triton's kernels compute something else; reinstall triton"
    except Exception as error:  # it raises RuntimeError, CalledProcessError, AssertionError and others
        line = next(iter(str(error).splitlines()), "")[:200]
        return f"Triton cannot launch a kernel here ({type(error).__name__}: {line}); {_remedy(error)}"


def _remedy(error: Exception) -> str:
    """What to install, from what triton 3.6 raises: `runtime/build.py` and `backends/nvidia/driver.py`."""
    if isinstance(error, subprocess.CalledProcessError):
        return "install Python's headers (python3-dev) and a C compiler that works, such as gcc"
    if "compiler" in str(error):
        return "install a C compiler such as gcc, or name one by CC"
    if "libcuda" in str(error):
        return "install NVIDIA's driver, or name the folder of libcuda.so by TRITON_LIBCUDA_PATH"
    return "install a triton for this torch and this GPU"


class Kernel:
    """A Triton kernel: the plain Python function, its warps, and the arguments Triton must not specialise on.

    `registers` is the most that a thread may use, None for the compiler's own choice. `helpers` are the plain functions
    that it calls, by the names that it calls them.
    fp fusion is pinned off: a multiply and an add are rounded separately on every architecture and by every Triton
    version (its default changed between 3.9 and 3.10), which is what the plain twin and the interpreter do too.
    """

    def __init__(
        self,
        function: Callable[..., None],
        *,
        warps: int,
        registers: int | None = None,
        unspecialised: tuple[str, ...] = (),
        helpers: tuple[Callable[..., Any], ...] = (),
    ) -> None:
        self.function = function
        self.helpers = helpers
        self.warps = warps
        self.options: dict[str, Any] = {"num_warps": warps, "maxnreg": registers, "enable_fp_fusion": False}
        self.unspecialised = unspecialised

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs to compile it; what this one compiled stays here."""
        return {name: value for name, value in vars(self).items() if name not in ("compiled", "interpreter")}

    @property
    def name(self) -> str:
        return self.function.__name__

    @cached_property
    def compiled(self) -> Any:
        """The `triton.JITFunction`, whatever TRITON_INTERPRET says."""
        from triton.runtime.jit import JITFunction

        return JITFunction(self._calling(JITFunction), do_not_specialize=self.unspecialised)

    @cached_property
    def interpreter(self) -> Any:
        from triton.runtime.interpreter import InterpretedFunction

        return InterpretedFunction(self._calling(InterpretedFunction))

    def _calling(self, wrap: Callable[[Callable[..., Any]], Any]) -> Callable[..., None]:
        """The function with its helpers as Triton calls them; itself where it has none."""
        if not self.helpers:
            return self.function
        names = {**self.function.__globals__, **{one.__name__: wrap(one) for one in self.helpers}}
        made = FunctionType(self.function.__code__, names, self.function.__name__, self.function.__defaults__)
        made.__annotations__, made.__module__ = self.function.__annotations__, self.function.__module__
        return made

    def launch(self, blocks: int, arguments: tuple[object, ...], constants: dict[str, int | bool]) -> None:
        """Run `blocks` programs on the current stream of the first argument's device; reads nothing back."""
        if interpreted():
            self.interpreter[(blocks,)](*arguments, **constants)
            return
        first = arguments[0]
        assert isinstance(first, torch.Tensor)
        with torch.cuda.device(first.device):
            self.compiled[(blocks,)](*arguments, **constants, **self.options)


def probe_kernel(stored, number):
    """stored [1] int32 becomes `number`."""
    tl.store(stored, number)


PROBE = Kernel(probe_kernel, warps=1)
