"""`pfdiff bench`: the latency of one engine, or a page about every benchmark run that is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..engine.errors import InputError
from . import options

if TYPE_CHECKING:
    from ..engine.runtime.latency import Latency


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
    from .figures import write_figures
    from .networks import read_engine
    from .progress import bar, opened
    from .values import integers_from

    evaluations = integers_from("--nfe", nfe) if nfe else None
    batches = integers_from("--batch", batch) if batch else None
    artifact = read_engine(engine, backend=backend, device=device)
    for count in evaluations or ():
        artifact.program(count)
    with opened(engine, device, backend, threads) as loaded:
        pairs = [(n, b) for n in evaluations or sorted(loaded.programs) for b in batches or sorted(loaded.batch)]
        figures = [loaded.bench(n, b, rounds) for n, b in bar(pairs, "timing")]
        description, digest = loaded.description, loaded.provenance.get("network_digest")
    print_bench(description, figures)
    if json:
        rows = [asdict(one) for one in figures]
        write_figures(json, {"engine": engine.name, "network_digest": digest, "figures": rows})


def print_bench(description: str, figures: Sequence[Latency]) -> None:
    """Who evaluates the network, then one row for each NFE and batch."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("NFE", "batch", "p50", "p90", "p99", "max", "first", "network", "overhead"):
        table.add_column(name, justify="right", no_wrap=True)
    table.caption = "ms a batch; network: its bare evaluations alone; overhead: median of whole / network"
    table.caption_justify = "left"
    for one in figures:
        times_ms = (one.p50_ms, one.p90_ms, one.p99_ms, one.max_ms, one.first_ms, one.floor_ms)
        table.add_row(str(one.nfe), str(one.batch), *(f"{value:.4g}" for value in times_ms), f"{one.overhead:.3f}")
    console = Console(highlight=False, markup=False)
    console.print(description)
    console.print(table)
