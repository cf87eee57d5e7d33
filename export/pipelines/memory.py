"""How much memory a pipeline's build takes, said before it starts: from the numbers of parameters in its files.

    need = base + 4 bytes x max(a denoiser, a decoder, b encoder)        b of the largest text encoder

Each network is read in float32 and freed once it is exported. Where the caller keeps the denoiser, the last term is
denoiser + decoder + b encoder. What an evaluation needs beside the weights is not counted. The factors are rounded up
from build_memory_freed.json in bench/results/amd-epyc-2-cores, those of bf16, eight bits and large text encoders from
build_memory.json, build_memory_sizes.json and memory.json there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from ...engine.errors import InputError, first_line

BASE_BYTES = 700 << 20  # torch, diffusers, transformers and the exporter
# (denoiser, text encoder): peaks as multiples of their float32 weights.
# Of bf16 upper bounds: its graph is compared in a float32 copy, and was measured with the weights beside their cast.
FACTORS = {"fp32": (2.2, 4.0), "fp16": (1.6, 4.0), "bf16": (3.6, 4.0), "int8": (3.1, 4.0), "fp8": (3.1, 4.0)}
# Of weights below 1 GiB, which are written inside the graph's own file: all of it is once more in memory then.
INSIDE_BYTES = 1 << 30
INSIDE_FACTORS = {"fp32": (4.1, 5.0), "fp16": (2.5, 2.5), "bf16": (3.8, 4.0)}
WORTH_SAYING_BYTES = 2 << 30
GIB = 1 << 30


@final
@dataclass(frozen=True)
class Need:
    """Numbers of parameters. encoders: by name."""

    denoiser: int
    decoder: int = 0
    encoders: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, denoiser: Sequence[Any], decoder: Any, texts: Mapping[str, tuple[Any, Any]]) -> Need:
        """Of modules, or of folders, whose weights are not read; None for none.

        denoiser: with its ControlNet, which is exported with it. texts: (encoder, tokenizer) by name.
        """
        encoders = {name: parameters_of(encoder) for name, (encoder, _) in texts.items()}
        return cls(sum(map(parameters_of, denoiser)), parameters_of(decoder), encoders)

    def bytes(self, precision: str, *, frees: bool = True) -> int:
        """Peak of the resident set, about. frees: each network goes before the next is read."""
        largest = max(self.encoders.values(), default=0)
        own, encoder = (_factors(one, precision)[place] for place, one in enumerate((self.denoiser, largest)))
        decoder = _factors(self.decoder, precision)[0]
        stays = 0 if frees else self.denoiser + self.decoder
        return BASE_BYTES + int(4 * max(own * self.denoiser, decoder * self.decoder, stays + encoder * largest))

    def line(self, precision: str, *, frees: bool = True) -> str:
        """One line, "" for what every machine has."""
        need = self.bytes(precision, frees=frees)
        if need < WORTH_SAYING_BYTES:
            return ""
        free = free_bytes()
        left = "" if free is None else f"; {(free + held_bytes()) / GIB:.1f} GiB are free or held by it already"
        return f"this build needs about {need / GIB:.1f} GiB of memory{left}"

    @property
    def warning(self) -> str:
        """What to say before anything is loaded, "" where the memory is enough."""
        free, least = free_bytes(), min(map(self.bytes, FACTORS))
        if free is None or least <= free:
            return ""
        return (
            f"a build of it needs about {least / GIB:.1f} GiB of memory, {free / GIB:.1f} GiB are free, and it may be "
            "killed; build where there is more, or leave the text encoders out (encoders=False, --no-encoders)"
        )


def _factors(parameters: int, precision: str) -> tuple[float, float]:
    """Of a denoiser and of a text encoder with so many parameters."""
    table = INSIDE_FACTORS if 4 * parameters < INSIDE_BYTES else FACTORS
    return table.get(precision, INSIDE_FACTORS["fp32"])


def parameters_of(source: Any) -> int:
    """Of a module, or of the safetensors in a folder; 0 where there is neither. Raises InputError: a damaged file."""
    if not isinstance(source, Path):
        return sum(one.numel() for one in source.parameters()) if hasattr(source, "parameters") else 0
    from safetensors import SafetensorError, safe_open

    from .weights import variant_of

    total, variants = 0, {}
    for path in sorted(source.glob("*.safetensors")):
        stem = path.name.split(".")[0].split("-")[0]
        try:
            if stem not in variants:
                variants[stem] = variant_of(source, stem)
            variant = variants[stem]
            if variant is not None and f".{variant}" not in path.name:
                continue
            if variant is None and not path.name.removeprefix(stem).startswith((".safetensors", "-0")):
                continue
            with safe_open(path, "pt") as file:
                total += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InputError(f"'{path}' is damaged ({first_line(error)[:120]}); copy it again") from None
    return total


def held_bytes() -> int:
    """The resident set of this process; 0 where that is not known."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def free_bytes() -> int | None:
    """What this machine still has for a process, at most its container's limit; None where that is not known."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")]
        most = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        found += [int(most)] if most != "max" else []
    except (OSError, ValueError, IndexError):
        pass
    return min(found, default=None)
