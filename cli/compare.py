"""`pfdiff compare`: errors of several samplers side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..engine.errors import InputError
from .arguments import options
from .arguments.networks import SAMPLED, Calibration, NetworkOrEngine, Reference, opened, takes
from .output.figures import as_name

if TYPE_CHECKING:
    from ..quality.compare import Comparison

PASSED_ON = (  # options that `pfdiff.compare` takes by the same name and as they are
    *("grid", "basis", "t_start", "seeds", "calibration", "reference"),
    *("backend", "threads", "out", "csv", "sheet"),
)

Plot = Annotated[Path | None, typer.Option("--out", "-o", help="The log plot: .png, .svg or .pdf.")]
Table = Annotated[Path | None, typer.Option("--csv", help="The table.")]
Sheet = Annotated[Path | None, typer.Option("--pictures", help="Rows solvers, columns NFE, the same seeds, .png.")]
Samplers = Annotated[
    list[str] | None, options.valued("<str>", "--solver", "solver, solver@grid or solver@grid/basis; repeatable.")
]
Grid = Annotated[
    str | None,
    typer.Option("--grid", help="Where a solver has none; best: by the calibration seeds; default: as build."),
]
Seeds = Annotated[int, options.parsed(options.integer, "--seeds", "How many the errors are of.")]


@takes(SAMPLED)
def compare(
    context: typer.Context,
    network: NetworkOrEngine,
    nfe: options.EvaluationsList,
    out: Plot = None,
    csv: Table = None,
    sheet: Sheet = None,
    solver: Samplers = None,
    grid: Grid = None,
    basis: options.Basis = None,
    clip: options.Clip = None,
    t_start: options.StartTime = None,
    seeds: Seeds = 32,
    calibration: Calibration = 16,
    reference: Reference = None,
) -> None:
    """Error against network evaluations for any list of solvers: table, log plot, pictures.

    The network's conditions are options too: --label 3; by default each label in turn.
    """
    from ..quality.output_files import OutputFiles
    from .arguments.values import integers_from
    from .output.progress import meter

    evaluations = integers_from("--nfe", nfe)
    OutputFiles.of(out, csv, sheet)  # before anything is loaded
    with meter() as progress:
        progress("reading the network", 0, 0)
        found = opened(network, context)
        from ..quality.compare import compare as measure

        settings: dict[str, Any] = {name: context.params[name] for name in PASSED_ON}
        settings |= {"conditions": found.conditions, "clip": found.clip, "progress": progress}
        result = measure(found.source, evaluations, solver or None, **settings)
    print_comparison(result)
    for path in filter(None, (out, csv, sheet)):
        print(as_name(path))
    if all(point.error is None for point in result.points):
        raise InputError(f"nothing could be compared: {result.points[0].note}")


def print_comparison(result: Comparison) -> None:
    """Rows solvers, columns NFE."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("solver", "grid"):
        table.add_column(name, overflow="fold")
    for count in result.nfe:
        table.add_column(f"NFE {count}", justify="right", no_wrap=True)
    for row in result.table():
        table.add_row(*row)
    notes = [
        f"{sampler}, NFE {one.nfe}: {one.note}" for sampler in result.samplers for one in result.of(sampler) if one.note
    ]
    console = Console(highlight=False, markup=False)
    console.print(table)
    reference, spent = result.reference, f"{result.evaluations} evaluations, {result.cached} of them cached"
    console.print(
        f"RMS distance to {reference.solver} in {reference.nfe} evaluations, {result.seeds} seeds; "
        f"{spent}, {result.seconds:.1f} s"
    )
    for note in (*notes, *filter(None, [result.doubt])):
        console.print(note)
