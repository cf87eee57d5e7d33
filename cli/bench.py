"""`pfdiff bench`: the latency of one engine, or a page about every benchmark run that is stored."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..engine.errors import InputError
from . import options


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(bench)


def bench(
    engine: Annotated[
        Path | None, typer.Argument(metavar="ENGINE", help="The engine directory; not with --report.")
    ] = None,
    nfe: Annotated[str | None, typer.Option("--nfe", help="Only these: 5,8.")] = None,
    batch: Annotated[str | None, typer.Option("--batch", help="Only these batch sizes: 1,8.")] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", parser=options.integer, metavar="<int>", help="Whole samples timed for each row.")
    ] = 50,
    json: options.JsonFile = None,
    backend: options.Backend = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
    report: Annotated[
        bool, typer.Option("--report", help="Write a page about every stored run of 'make bench' instead.")
    ] = False,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Of --report: the page; plots in a folder beside it."),
    ] = Path("bench.md"),
) -> None:
    """Time whole samples and the bare network: p50, p90, p99, max, first call, floor, overhead."""
    if report:
        if engine is not None:
            raise InputError(f"got ENGINE '{engine}' and --report, expected one of them; --report reads stored runs")
        from ..bench.report import write_report

        print(write_report(out))
        return
    if engine is None:
        raise InputError("ENGINE is missing; give the directory that 'pfdiff build' wrote, or --report")
    from . import info as cli_tables
    from .progress import bar, opened
    from .values import integers_from

    evaluations = integers_from("--nfe", nfe) if nfe else None
    batches = integers_from("--batch", batch) if batch else None
    with opened(engine, device, backend, threads) as loaded:
        pairs = [(n, b) for n in evaluations or sorted(loaded.programs) for b in batches or sorted(loaded.batch)]
        figures = [loaded.bench(n, b, rounds) for n, b in bar(pairs, "timing")]
        description, digest = loaded.description, loaded.provenance.get("network_digest")
    cli_tables.print_bench(description, figures)
    if json:
        rows = [asdict(one) for one in figures]
        cli_tables.write_figures(json, {"engine": engine.name, "network_digest": digest, "figures": rows})
