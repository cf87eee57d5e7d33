"""One kernel, two ways to run it: compiled by Triton for a GPU, or interpreted on the CPU to test the same source.

Triton is optional. Without it the launchers of `step`, `noise` and `images` take the plain twin in `eager`. The
interpreter is chosen when a kernel is launched, by TRITON_INTERPRET=1, not when its module is imported, so one process
may interpret, launch and compile ahead of time.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import torch

tl: Any = None  # triton.language; Any, since its stubs reject what its compiler accepts
if importlib.util.find_spec("triton") is not None:
    import triton.language as tl
if TYPE_CHECKING:
    from triton.language import constexpr
else:
    constexpr = getattr(tl, "constexpr", None)  # the annotation of a kernel's constants

__all__ = ["Kernel", "constexpr", "interpreted", "runs_triton", "tl", "triton_available"]


def triton_available() -> bool:
    """Whether Triton is installed."""
    return tl is not None


def interpreted() -> bool:
    """Whether kernels are interpreted on the CPU: TRITON_INTERPRET=1 in the environment."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def runs_triton(tensor: torch.Tensor) -> bool:
    """Whether an op on this tensor launches its Triton kernel; a CUDA tensor without Triton says so once."""
    if triton_available():
        return tensor.is_cuda or interpreted()
    if tensor.is_cuda:
        _announce_fallback()
    return False


@cache
def _announce_fallback() -> None:
    warnings.warn(
        "Triton is not installed, so the fused kernels run as several plain torch operations; pip install triton",
        RuntimeWarning,
        stacklevel=4,
    )


class Kernel:
    """A Triton kernel: the plain Python function, its warps, and the arguments Triton must not specialise on.

    `registers` is the most that a thread may use, None for the compiler's own choice.
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
    ) -> None:
        self.function = function
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

        return JITFunction(self.function, do_not_specialize=self.unspecialised)

    @cached_property
    def interpreter(self) -> Any:
        from triton.runtime.interpreter import InterpretedFunction

        return InterpretedFunction(self.function)

    def launch(self, blocks: int, arguments: tuple[object, ...], constants: dict[str, int | bool]) -> None:
        """Run `blocks` programs on the current stream of the first argument's device; reads nothing back."""
        if interpreted():
            self.interpreter[(blocks,)](*arguments, **constants)
            return
        first = arguments[0]
        assert isinstance(first, torch.Tensor)
        with torch.cuda.device(first.device):
            self.compiled[(blocks,)](*arguments, **constants, **self.options)
