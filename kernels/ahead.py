"""Ahead-of-time compilation of every kernel, for any architecture and without a GPU.

`compile_ahead` writes, for each compute capability, a cubin and its PTX per variant and one `index.json` from which a
driver-API loader can launch them: symbol, constants, argument order and types, threads, shared memory. Each record also
says what can be proved without running: registers, spills, width of the accesses, bytes per element against the floor.
`summary.json` has the worst of them for each op, number of states and capability.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from .assembly import Accesses, accesses, parameters, resources
from .launch import triton_available
from .variants import Variant, standard

CAPABILITIES = (75, 80, 86, 89, 90, 100, 103, 120, 121)
DESKTOP_8 = (80, 86, 89)  # the parts of compute capability 8.x that share cubins; 8.7 is Tegra
INDEX = "index.json"
SUMMARY = "summary.json"
FORMAT = 1
FEWEST_JOBS = 30  # for a process: its start costs as much as a dozen kernels


@dataclass(frozen=True)
class Record:
    """One compiled kernel. Paths are relative to the index; byte counts are per element unless the name says more."""

    op: str
    name: str
    capability: int
    symbol: str
    cubin: str
    ptx: str
    constants: dict[str, int | bool]
    arguments: tuple[tuple[str, str], ...]  # (name, Triton type) in launch order; `scratch` pointers are null
    promised: tuple[str, ...]  # arguments that must be multiples of 16; empty if the kernel takes any
    grid: str
    block: int
    threads: int
    shared_bytes: int  # per program
    registers: int  # per thread
    spill_bytes: int  # local memory per thread; 0 is no spill
    load_bits: tuple[int, ...]  # widths of the state-sized loads of a thread, distinct, rising
    store_bits: tuple[int, ...]
    read_bytes: float
    write_bytes: float
    read_floor_bytes: int
    write_floor_bytes: int

    @property
    def at_floor(self) -> bool:
        """Whether the kernel moves exactly the bytes that it cannot avoid."""
        return (self.read_bytes, self.write_bytes) == (self.read_floor_bytes, self.write_floor_bytes)


def compile_ahead(
    capabilities: Sequence[int],
    out: str | Path,
    progress: Callable[[int, int, str], None] | None = None,
    *,
    variants: Iterable[Variant] | None = None,
    workers: int | None = None,
) -> list[Record]:
    """Compile the variants (default: `variants.standard()`) for each capability, 90 for sm_90, into folder `out`.

    progress(done, total, name) is called after each kernel. The kernels are compiled in `workers` fresh processes, one
    for each core if None; by this process alone if 1 or if they are few. The folder appears whole or not at all; one
    that an earlier call wrote is replaced.
    Raises ValueError for an unknown capability or an occupied folder, RuntimeError without Triton.
    """
    if not triton_available():
        raise RuntimeError("compiling kernels needs Triton, which is not installed; pip install triton")
    capabilities = list(dict.fromkeys(capabilities))
    unknown = [capability for capability in capabilities if capability not in CAPABILITIES]
    if unknown or not capabilities:
        known = ", ".join(map(str, CAPABILITIES))
        raise ValueError(f"compute capabilities {unknown} are not supported; choose from {known}")
    out = Path(out)
    _refuse_occupied(out)
    chosen = standard() if variants is None else list(dict.fromkeys(variants))
    jobs = [(variant, capability) for capability in capabilities for variant in chosen]

    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        for capability in capabilities:
            (partial / f"sm{capability}").mkdir(parents=True)
        records: list[Record] = []
        for record in _compile_all(jobs, partial, workers):
            records.append(record)
            if progress is not None:
                progress(len(records), len(jobs), f"sm{record.capability} {record.name}")
        (partial / INDEX).write_text(json.dumps(_index(records), indent=1) + "\n")
        rows = ",\n  ".join(json.dumps(row) for row in summary(records))
        (partial / SUMMARY).write_text(f'{{"run_on": null, "triton": "{triton_version()}", "rows": [\n  {rows}\n]}}\n')
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return records


def serving(compiled: Iterable[int], device: int) -> int | None:
    """The capability among `compiled` whose cubins a device of capability `device` runs best; None if it runs none.

    A cubin runs on its own capability and, within 8.x, on later desktop parts: sm_80 on 8.6 and 8.9, sm_86 on 8.9
    (CUDA C++ Programming Guide, "Binary Compatibility"). Triton compiles 9.0 and later as sm_90a, sm_100a, ..., which
    run nowhere else. The same rule stands in engine/native/cuda/capability.h.
    """
    runs = [one for one in compiled if one == device or (one in DESKTOP_8 and device in DESKTOP_8 and one < device)]
    return max(runs, default=None)


def _refuse_occupied(out: Path) -> None:
    if out.exists() and not (out.is_dir() and ((out / INDEX).is_file() or not any(out.iterdir()))):
        raise ValueError(f"{out} exists and does not hold compiled kernels; give a new or an empty folder")


def _compile_all(jobs: list[tuple[Variant, int]], folder: Path, workers: int | None) -> Iterable[Record]:
    workers = min(os.cpu_count() or 1 if workers is None else workers, len(jobs) // FEWEST_JOBS)
    if workers <= 1:
        for variant, capability in jobs:
            yield compile_one(variant, capability, folder)
        return
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn")
    ) as pool:  # Triton's threads do not survive a fork
        yield from pool.map(_compile_job, jobs, [folder] * len(jobs), chunksize=max(1, len(jobs) // workers // 8))


def _compile_job(job: tuple[Variant, int], folder: Path) -> Record:
    return compile_one(*job, folder)


def compile_one(variant: Variant, capability: int, folder: Path) -> Record:
    """Compile one variant for one capability and write its cubin and PTX into folder/sm<capability>."""
    binary = _triton_compile(variant, capability)
    ptx, cubin = binary.asm["ptx"], binary.asm["cubin"]
    stem = f"sm{capability}/{variant.name}"
    (folder / f"{stem}.ptx").write_text(ptx)
    (folder / f"{stem}.cubin").write_bytes(cubin)

    threads = 32 * variant.kernel.warps
    moved: Accesses = accesses(ptx)
    used = resources(folder / f"{stem}.cubin")
    per_thread = variant.block / threads
    return Record(
        op=variant.op,
        name=variant.name,
        capability=capability,
        symbol=binary.metadata.name,
        cubin=f"{stem}.cubin",
        ptx=f"{stem}.ptx",
        constants=dict(variant.constants),
        arguments=parameters(ptx, variant.types),
        promised=variant.promised,
        grid=variant.grid,
        block=variant.block,
        threads=threads,
        shared_bytes=binary.metadata.shared,
        registers=used.registers,
        spill_bytes=used.local_bytes,
        load_bits=tuple(sorted(set(moved.load_bits))),
        store_bits=tuple(sorted(set(moved.store_bits))),
        read_bytes=sum(moved.load_bits) / 8 / per_thread,
        write_bytes=sum(moved.store_bits) / 8 / per_thread,
        read_floor_bytes=variant.read_floor,
        write_floor_bytes=variant.write_floor,
    )


def _triton_compile(variant: Variant, capability: int) -> Any:
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = variant.kernel.compiled
    types = dict(variant.types)
    left = {name: one.default for name, one in inspect.signature(function.fn).parameters.items() if name not in types}
    constants = {**left, **dict(variant.constants)}  # an argument that is left out has its default
    signature = {name: types.get(name, "constexpr") for name in function.arg_names}
    attributes = {(function.arg_names.index(name),): [["tt.divisibility", 16]] for name in variant.promised}
    with knobs.compilation.scope():
        knobs.compilation.disable_line_info = True  # line info would carry this machine's paths into the cubin
        return triton.compile(
            ASTSource(function, signature, constants, attributes),
            target=GPUTarget("cuda", capability, 32),
            options=variant.kernel.options,
        )


def triton_version() -> str:
    import triton

    return triton.__version__


def _index(records: list[Record]) -> dict[str, object]:
    kernels = []
    for record in records:
        entry = asdict(record)
        entry["arguments"] = [
            {"name": name, "type": kind, "multiple_of": 16 if name in record.promised else 1}
            for name, kind in record.arguments
        ]
        del entry["promised"]
        kernels.append(entry)
    return {"format": FORMAT, "triton": triton_version(), "kernels": kernels}


def summary(records: Iterable[Record]) -> list[dict[str, Any]]:
    """For each capability, op and number of states (0 where there are none): how many kernels, and the worst of them.

    narrowest: bits of the narrowest state-sized access among the kernels that are promised alignment. above_floor:
    kernels that move more than they must.
    """
    groups: dict[tuple[int, str, int], list[Record]] = {}
    for record in records:
        key = record.capability, record.op, int(record.constants.get("BUFFERS", 0))
        groups.setdefault(key, []).append(record)
    return [
        {
            "capability": capability,
            "op": op,
            "states": states,
            "kernels": len(group),
            "registers": max(one.registers for one in group),
            "spill_bytes": max(one.spill_bytes for one in group),
            "shared_bytes": max(one.shared_bytes for one in group),
            "narrowest_load": min(
                (min(one.load_bits) for one in group if one.promised and one.load_bits), default=None
            ),
            "narrowest_store": min((min(one.store_bits) for one in group if one.promised), default=None),
            "bytes_per_element": max(one.read_bytes + one.write_bytes for one in group),
            "floor": max(one.read_floor_bytes + one.write_floor_bytes for one in group),
            "above_floor": sum(not one.at_floor for one in group),
        }
        for (capability, op, states), group in groups.items()
    ]
