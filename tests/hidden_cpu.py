"""The tests as on a smaller processor: `PFDIFF_HIDE_CPU=1` hides bf16, AVX-512 and all cores but one.

Libraries read what they may use from the environment when they are first imported, so `hide` comes before all of them.
OpenVINO has no such variable; its answer to which precisions this processor has is changed instead. ONEDNN_MAX_CPU_ISA
is not set, since it reaches only a part of OpenVINO, which then crashes.
"""

from __future__ import annotations

import os

ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch's own kernels
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
}


def is_hidden() -> bool:
    """Whether the environment asks for it."""
    return os.environ.get("PFDIFF_HIDE_CPU") == "1"


def hide() -> None:
    """For this process and those that it starts."""
    os.environ.update(ENVIRONMENT)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def hide_precisions() -> None:
    """Of those that OpenVINO reports, all but fp32; and VNNI, for what asks before it stores eight bits."""
    from pfdiff.engine import machine

    machine.adds_in_16_bits = lambda: True  # type: ignore[assignment]
    try:
        from pfdiff.engine.backends import openvino_cpu
    except ImportError:  # it is not installed
        return
    openvino_cpu.cpu_precisions = lambda: ("fp32",)  # type: ignore[assignment]
