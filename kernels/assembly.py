"""What a compiled kernel shows without running: accesses and parameters in the PTX, resources in the cubin.

The kernels are straight-line code and every thread runs each access once, so the bytes per thread are a sum over the
instructions. Coefficients and seeds, the same for a whole program, are loaded with `.ca` and are not counted.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ACCESS = re.compile(r"\b(ld|st)\.global((?:\.(?!v\d|[bsuf]\d)[\w:]+)*)(?:\.v(\d))?\.[bsuf](\d+)")
PARAMETER = re.compile(r"\.param\s+\.([usbf])(\d+)\b")
ENTRY = re.compile(r"\.entry\s+\w+\s*\((.*?)\)", re.DOTALL)
USAGE = re.compile(r"REG:(\d+)\s+STACK:(\d+).*?LOCAL:(\d+)")


@dataclass(frozen=True)
class Accesses:
    """Widths in bits of each state-sized load and store of one thread, in program order."""

    load_bits: tuple[int, ...]
    store_bits: tuple[int, ...]


@dataclass(frozen=True)
class Resources:
    """Per thread: registers, and bytes of local memory (stack frame), which only spills can need here."""

    registers: int
    local_bytes: int


def accesses(ptx: str) -> Accesses:
    """The global accesses of a kernel's PTX, without those marked `.ca`."""
    widths: dict[str, list[int]] = {"ld": [], "st": []}
    for kind, modifiers, vector, bits in ACCESS.findall(ptx):
        if ".ca" not in modifiers:
            widths[kind].append(int(vector or 1) * int(bits))
    return Accesses(tuple(widths["ld"]), tuple(widths["st"]))


def parameters(ptx: str, types: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """The launch signature: `types`, then the scratch pointers that Triton appends, checked against the PTX entry.

    Raises RuntimeError when the sizes disagree: the loader would pass wrong arguments.
    """
    entry = ENTRY.search(ptx)
    sizes = [int(bits) for _, bits in PARAMETER.findall(entry.group(1))] if entry else []
    expected = [64 if kind.startswith("*") or kind == "i64" else 32 for _, kind in types]
    extra = sizes[len(expected) :]
    if sizes[: len(expected)] != expected or any(bits != 64 for bits in extra):
        raise RuntimeError(f"the PTX takes parameters of {sizes} bits, expected {expected} and scratch pointers")
    return (*types, *(("scratch", "*i8") for _ in extra))


def resources(cubin: Path) -> Resources:
    """Registers and local memory of the one kernel in a cubin, by the cuobjdump that Triton brings."""
    from triton import knobs

    listing = subprocess.run(
        [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    usage = USAGE.search(listing)
    if usage is None:
        raise RuntimeError(f"cuobjdump printed no resource usage for {cubin.name}: {listing.strip()!r}")
    registers, stack, local = map(int, usage.groups())
    return Resources(registers, stack + local)
