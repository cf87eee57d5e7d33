"""Whether noise and updates on a CPU run compiled (`_cpu.cpp`) or in NumPy."""

from __future__ import annotations

import importlib
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from ..errors import first_line


def beside_the_network() -> str:
    """`compiled`, or `NumPy, since ...`, in words for people."""
    try:
        importlib.import_module("._cpu", __package__)
    except ImportError as error:
        if any(Path(__file__).with_name(f"_cpu{ending}").exists() for ending in EXTENSION_SUFFIXES):
            return f"NumPy, since the compiled part cannot be loaded ({first_line(error)})"
        return "NumPy, since pfdiff was installed without a C++ compiler; install one, then pfdiff again"
    return "compiled"
