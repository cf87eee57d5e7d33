"""`pfdiff table`: programs as files, to move them between engines or to type in published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .arguments import options
from .output.figures import as_name

table = typer.Typer(help="Write an engine's table to a JSON file, or put one from a file into an engine.")


@table.command("export")
def export_(
    engine: options.EngineArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="The JSON file.")],
    nfe: options.Evaluations = None,
    strength: Annotated[
        float | None, typer.Option("--strength", help="Write a start from a picture, for pfdiff-run: 0 to 1.")
    ] = None,
    strength_counts: Annotated[
        str | None,
        typer.Option("--strength-counts", help="part: all of --nfe for this part; whole: as diffusers counts."),
    ] = None,
) -> None:
    """Write the program for one NFE, with the network it was made for and its errors."""
    from ..engine.errors import InputError
    from ..export.tables import export_table

    if strength is not None:
        from ..export.starts import export_start

        program = export_start(engine, nfe, strength, out, strength_counts or "part")
        print(f"{as_name(out)}: strength {strength:g}, {program.solver}, NFE {program.nfe}, {program.buffers} buffers")
        return
    if strength_counts is not None:
        raise InputError("--strength-counts says how --strength counts; give --strength too, or leave it out")
    found = export_table(engine, nfe, out)
    print(f"{as_name(out)}: {found.program.solver}, NFE {found.program.nfe}, {found.program.buffers} buffers")


@table.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A JSON file of table export, or one typed in.")],
    engine: options.EngineArgument,
    another_network: Annotated[
        bool, typer.Option("--another-network", help="Take a table that was made for another network.")
    ] = False,
) -> None:
    """Put a program into an engine, in place of the one for its NFE."""
    from ..export.tables import import_table
    from .output.figures import printable

    program = import_table(file, engine, another_network=another_network, say=lambda line: print(printable(line)))
    print(f"{as_name(engine)}: NFE {program.nfe} is {printable(program.solver)} of {as_name(file)}")
