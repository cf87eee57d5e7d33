"""`pfdiff kernels`: every kernel compiled ahead of time, on a machine that needs no GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import cli_options as options
from .engine.errors import BackendError, InputError

if TYPE_CHECKING:
    from .kernels.ahead import Record

Capabilities = Annotated[str, typer.Option("--cc", help="Compute capabilities, 86 for sm_86: 75,80,86.")]
Folder = Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="A new folder: cubin, PTX, index.json.")]
Workers = Annotated[int, typer.Option("--workers", parser=options.integer, metavar="INT", help="Processes at once.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(kernels)


def kernels(out: Folder, cc: Capabilities = "75,80,86,89,90,100,120", workers: Workers = 1) -> None:
    """Compile every kernel ahead of time: registers, spills, access widths, bytes per element."""
    from .cli_words import integers_from

    capabilities = integers_from("--cc", cc)
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: the folder {out.parent} does not exist; create it first")
    from .kernels.ahead import compile_ahead

    try:
        with _bar() as progress:
            records = compile_ahead(capabilities, out, progress, workers=workers)
    except ValueError as error:
        raise InputError(str(error)) from error
    except RuntimeError as error:
        raise BackendError(str(error)) from error
    _print(records)
    print(f"{out}: {len(records)} kernels; index.json has each one's figures")


def _print(records: Sequence[Record]) -> None:
    """One row for each capability and op: the worst of its kernels."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("sm", "op", "kernels", "most registers", "most spilled bytes", "above least traffic"):
        table.add_column(name, justify="left" if name == "op" else "right")
    for capability, op in dict.fromkeys((record.capability, record.op) for record in records):
        group = [record for record in records if (record.capability, record.op) == (capability, op)]
        registers = max(record.registers for record in group)
        spilled = max(record.spill_bytes for record in group)
        above = sum(not record.at_floor for record in group)
        table.add_row(str(capability), op, *map(str, (len(group), registers, spilled, above)))
    Console(highlight=False).print(table)


@contextmanager
def _bar() -> Iterator[Callable[[int, int, str], None] | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("compiling", total=None)
        yield lambda done, total, name: bar.update(task, completed=done, total=total, description=name)
