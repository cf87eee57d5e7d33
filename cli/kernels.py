"""`pfdiff kernels`: every kernel compiled ahead of time, on a machine that needs no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..engine.errors import BackendError, InputError
from .arguments import options
from .output.figures import as_name

if TYPE_CHECKING:
    from ..kernels.ahead import Record

Capabilities = Annotated[str, typer.Option("--cc", help="Compute capabilities, 86 for sm_86: 75,80,86.")]
Folder = Annotated[Path, typer.Option("--out", "-o", help="A new folder: cubin, PTX, index.json.")]
Workers = Annotated[int | None, options.parsed(options.integer, "--workers", "Processes at once; default: one a core.")]


def kernels(out: Folder, cc: Capabilities = "75,80,86,89,90,100,103,120,121", workers: Workers = None) -> None:
    """Compile every kernel ahead of time: registers, spills, access widths, bytes per element."""
    from .arguments.values import integers_from
    from .output.progress import named_bar

    capabilities = integers_from("--cc", cc)
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: the folder {out.parent} does not exist; create it first")
    from ..kernels.ahead import compile_ahead

    try:
        with named_bar("compiling") as progress:
            records = compile_ahead(capabilities, out, progress, workers=workers)
    except ValueError as error:
        raise InputError(str(error)) from error
    except RuntimeError as error:
        raise BackendError(str(error)) from error
    _print(records)
    print(f"{as_name(out)}: {len(records)} kernels; index.json has each one's figures, summary.json the worst of them")


def _print(records: Sequence[Record]) -> None:
    """The summary, one row for each capability, op and number of states."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ..kernels.ahead import summary

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    for name in ("sm", "op", "states", "count", "regs", "spilled", "bits", "bytes", "floor", "above"):
        table.add_column(name, justify="left" if name == "op" else "right")
    for row in summary(records):
        bits = [row[name] for name in ("narrowest_load", "narrowest_store") if row[name]]
        cells = [row["capability"], row["op"], row["states"] or ""]
        cells += [row["kernels"], row["registers"], row["spill_bytes"]]
        cells += [min(bits, default="-"), f"{row['bytes_per_element']:g}", row["floor"], row["above_floor"]]
        table.add_row(*map(str, cells))
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print(
        "regs, spilled: registers and bytes, most a thread; bits: narrowest access of a kernel for aligned data; "
        "bytes: most an element; above: kernels that move more than their floor"
    )
