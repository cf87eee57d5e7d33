"""The CPU and the packages of this machine, on which measurements depend."""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path


@cache
def processor() -> str:
    """The CPU's name, from its maker or the system."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


# Instructions that add products of eight bits in 32 bits at once, as Linux names them.
VNNI = {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"}


def adds_in_16_bits() -> bool:
    """Whether this CPU adds two products of uint8 and int8 in 16 bits, which overflow where weights have all 8 bits.

    x86 without VNNI does (vpmaddubsw): 2 x 255 x 127 is beyond 32767, 2 x 255 x 64 is not. So is x86 taken to be where
    the system does not say.
    """
    return _lacks_vnni(platform.machine(), _instructions())


def _lacks_vnni(kind: str, instructions: frozenset[str]) -> bool:
    return kind.lower() in ("x86_64", "amd64") and not VNNI & instructions


@cache
def _instructions(info: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    found = re.search(r"^flags\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return frozenset(found[1].split()) if found else frozenset()


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def torch_without_cuda() -> str:
    """Why the installed torch uses no GPU, in one clause, without importing it; empty where it may."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return ""
    said = Path(found.origin).with_name("version.py")
    is_without = said.exists() and re.search(r"^cuda\b.*= None$", said.read_text(), re.MULTILINE)
    return f"torch {version_of('torch')} is a build without CUDA" if is_without else ""


@cache
def version_of(package: str) -> str | None:
    """The version of an installed package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
