"""`pfdiff bench`: the latency of one engine, or a page about every benchmark run that is stored."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..engine.errors import InputError
from .arguments import options

if TYPE_CHECKING:
    from ..engine.api import Engine
    from ..engine.runtime.timing.latency import Latency

COLUMNS = {  # of the table, and their widths: 80 characters in all
    **{"NFE": 4, "batch": 5, "rounds": 6, "p50": 6, "p90": 6, "p99": 6, "max": 6, "first": 6, "network": 7},
    "overhead": 8,
}

EngineOrNone = Annotated[Path | None, typer.Argument(metavar="ENGINE", help="The engine directory; not with --report.")]
OnlyNfe = Annotated[str | None, typer.Option("--nfe", help="Only these: 5,8.")]
OnlyBatch = Annotated[str | None, typer.Option("--batch", help="Only these batch sizes: 1,8.")]
Rounds = Annotated[int, options.parsed(options.integer, "--rounds", "Whole samples a row, at most.")]
Seconds = Annotated[float, options.parsed(options.number, "--seconds", "Of one row; it ends early once it is exact.")]
Loop = Annotated[str | None, options.valued("<rate>", "--loop", "Drive it at this rate for --seconds: 50Hz.")]
Load = Annotated[int, options.parsed(options.natural, "--load", "Of --loop: busy processes beside it.")]
Report = Annotated[bool, typer.Option("--report", help="Write a page about every stored run of 'make bench' instead.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Of --report: the page; plots in a folder beside it.")]


def bench(
    engine: EngineOrNone = None,
    nfe: OnlyNfe = None,
    batch: OnlyBatch = None,
    rounds: Rounds = 50,
    seconds: Seconds = 10.0,
    loop: Loop = None,
    load: Load = 0,
    json: options.JsonFile = None,
    backend: options.Backend = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
    report: Report = False,
    out: Out = Path("bench.md"),
) -> None:
    """Time whole samples and the bare network: p50, p90, p99, max, first call, floor, overhead.

    With --loop the engine is driven at a rate: how late calls are, and how many ticks are missed.
    """
    if report:
        if engine is not None:
            raise InputError(f"got ENGINE '{engine}' and --report, expected one of them; --report reads stored runs")
        from ..bench.report import write_report

        print(write_report(out))
        return
    if engine is None:
        raise InputError("ENGINE is missing; give the directory that 'pfdiff build' wrote, or --report")
    from .arguments.networks import read_engine
    from .arguments.values import integers_from
    from .loop import asked_rate, driven
    from .output.figures import write_figures
    from .output.progress import opened

    hz = asked_rate(loop, seconds, load, batch)
    evaluations = integers_from("--nfe", nfe) if nfe else None
    batches = integers_from("--batch", batch) if batch else None
    artifact = read_engine(engine, backend=backend, device=device)
    for count in evaluations or ():
        artifact.program(count)
    counts = evaluations or sorted(artifact.programs)
    pairs = [(count, size) for size in batches or sorted(artifact.batch) for count in counts]
    with opened(engine, device, backend, threads) as loaded:
        print(f"{loaded.description}\n")
        digest = loaded.provenance.get("network_digest")
        if hz is not None:
            records = driven(loaded, counts, hz, seconds, load)
            if json:
                write_figures(json, {"engine": engine.name, "network_digest": digest, "loop": records})
            return
        print("  ".join(name.rjust(width) for name, width in COLUMNS.items()), flush=True)
        figures = [_timed(loaded, pair, rounds, seconds) for pair in pairs]
    print("\nms a batch; network: bare evaluations alone; overhead: median whole / network")
    if json:
        rows = [asdict(one) for one in figures]
        write_figures(json, {"engine": engine.name, "network_digest": digest, "figures": rows})


def _timed(engine: Engine, pair: tuple[int, int], rounds: int, seconds: float) -> Latency:
    """One row, printed as soon as it is known."""
    from .output.progress import stages

    with stages() as progress:
        progress(f"timing NFE {pair[0]}, batch {pair[1]}")
        found = engine.bench(*pair, rounds, seconds=seconds)
    print(row_text(found), flush=True)
    return found


def row_text(one: Latency) -> str:
    """A line of the table."""
    times_ms = (one.p50_ms, one.p90_ms, one.p99_ms, one.max_ms, one.first_ms, one.floor_ms)
    cells = (one.nfe, one.batch, one.rounds, *map(_ms_text, times_ms), f"{one.overhead:.3f}")
    return "  ".join(str(cell).rjust(width) for cell, width in zip(cells, COLUMNS.values(), strict=True))


def _ms_text(value: float) -> str:
    """Milliseconds in at most six characters, four digits of them."""
    return f"{value:.4f}" if value < 1 else f"{value:.4g}" if value < 1000 else f"{value:.0f}"
