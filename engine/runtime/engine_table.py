"""A loaded engine as a table, for notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..compiler.program import Program
from ..contract.contract import Contract
from ..notebook import html_table


def engine_table(
    contract: Contract, programs: Mapping[int, Program], batch: Sequence[int], description: str, path: str
) -> str:
    """Of a loaded engine: network, programs and backend."""
    rows = [
        ("network", f"{contract.name}: {contract.input} {list(contract.shape)} -> {contract.prediction}"),
        ("schedule", contract.schedule),
        *(("condition", f"{one.alias or one.name}: {one.dtype} {list(one.shape)}") for one in contract.conditions),
        *((f"NFE {nfe}", f"{program.solver}, {program.grid}") for nfe, program in programs.items()),
        ("batch", ", ".join(map(str, batch))),
        ("runs on", description),
    ]
    return html_table(rows, caption=path)
