"""`pfdiff generate`: samples in bulk as shards in a folder, in this process or on Ray."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from ..engine.bulk.generate import Generated


def register(app: typer.Typer) -> None:
    """Add the command; what it does not know itself are the network's conditions: --label 3."""
    app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(generate)


def generate(
    context: typer.Context,
    engine: options.EngineArgument,
    count: Annotated[int, typer.Option("--count", parser=options.integer, metavar="<int>", help="How many samples.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder: shards and manifest.json.")],
    nfe: options.Evaluations = None,
    first: Annotated[
        int, typer.Option("--first", parser=options.natural, metavar="<int>", help="The first seed; one seed a sample.")
    ] = 0,
    format: Annotated[str, typer.Option("--format", help="parquet, npz or png.")] = "parquet",
    pixels: Annotated[bool, typer.Option("--pixels", help="uint8 pixels, not float32 samples.")] = False,
    shard: Annotated[
        int | None,
        typer.Option("--shard", parser=options.integer, metavar="<int>", help="Samples a file; default: about 256."),
    ] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="ADDRESS", help="local, auto (the running cluster) or HOST:PORT.")
    ] = None,
    workers: options.Workers = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option("--gpus-per-worker", parser=options.number, metavar="<float>", help="On Ray; default: 1 if any."),
    ] = None,
    backend: options.Backend = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
) -> None:
    """Generate many samples: shards and a manifest, the same files here and on Ray; run again, it goes on.

    The network's conditions are options too: --label 3, or several values, of which seed s takes number s mod m.
    """
    from .values import given_conditions

    with _bar() as progress:
        from ..engine.artifact import read_artifact
        from ..engine.bulk.generate import generate as run

        given = given_conditions(context.args, read_artifact(engine, verify=False).contract)
        done = run(
            engine,
            count,
            out,
            nfe=nfe,
            first=first,
            conditions=given,
            format=format,
            pixels=pixels,
            shard=shard,
            ray=ray,
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            backend=backend,
            device=device,
            threads=threads,
            progress=progress,
        )
    _print(done)


def _print(done: Generated) -> None:
    files = "1 shard" if done.shards == 1 else f"{done.shards} shards"
    kept = f", {done.shards - done.made} of them from before" if done.made < done.shards else ""
    print(f"{done.path}: {done.count} samples of {done.nfe} evaluations in {files}{kept}, {done.seconds:.1f} s")
    if len(done.made_by) > 1:
        print(f"made by {' and by '.join(done.made_by)}; these agree to rounding, not in every bit")


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None] | None]:
    """Finished samples, rate and time left on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task
    from rich.text import Text

    class Rate(ProgressColumn):
        """The whole run's speed, for rich forgets what is some minutes old, and shards may take longer."""

        def render(self, task: Task) -> Text:
            return Text(rate_and_time_left(task.completed - task.fields["before"], task.remaining or 0, task.elapsed))

    with Progress(
        "generating", BarColumn(24), MofNCompleteColumn(), Rate(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task("", total=None, before=0)

        def tell(done: int, total: int) -> None:
            begun = bar.tasks[0].total is None  # what earlier runs did is not this one's speed
            if begun:
                bar.reset(task, total=total, completed=done, before=done)
            else:
                bar.update(task, completed=done)

        yield tell


def rate_and_time_left(made: float, missing: float, seconds: float | None) -> str:
    """Of a run that has `made` samples in so many seconds; empty until the first ones are there."""
    if not made or not seconds:
        return ""
    rate = made / seconds
    left = timedelta(seconds=int(missing / rate))
    return f"{rate:.{0 if rate >= 100 else 2}f} samples/s {left}"
