"""`pfdiff generate`: samples in bulk as shards in a folder, in this process or on Ray."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .arguments import options
from .output.figures import as_name

if TYPE_CHECKING:
    from ..engine.bulk.generate import Generated

PASSED_ON = (  # options that `pfdiff.generate` takes by the same name and as they are
    *("nfe", "first", "format", "pixels", "shard", "ray", "workers", "gpus_per_worker"),
    *("backend", "device", "threads"),
)


def generate(
    context: typer.Context,
    engine: options.EngineArgument,
    count: Annotated[int, options.parsed(options.integer, "--count", "How many samples.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder: shards and manifest.json.")],
    nfe: options.Evaluations = None,
    first: Annotated[int, options.parsed(options.natural, "--first", "The first seed; one seed a sample.")] = 0,
    format: Annotated[str, typer.Option("--format", help="parquet, npz or png.")] = "parquet",
    pixels: Annotated[bool, typer.Option("--pixels", help="uint8 pixels, not float32 samples.")] = False,
    shard: Annotated[
        int | None, options.parsed(options.integer, "--shard", "Samples a file; default: about 256.")
    ] = None,
    ray: Annotated[
        str | None, options.valued("ADDRESS", "--ray", "local, auto (the running cluster) or HOST:PORT.")
    ] = None,
    prompt: options.Prompts = None,
    negative_prompt: options.NegativePrompts = None,
    workers: options.Workers = None,
    gpus_per_worker: Annotated[
        float | None, options.parsed(options.number, "--gpus-per-worker", "On Ray; default: 1 if any.")
    ] = None,
    backend: options.Backend = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
) -> None:
    """Generate many samples: shards and a manifest, the same files here and on Ray; run again, it goes on.

    The network's conditions are options too: --label 3. Of m values, as in --label 3,5,7, seed s has number s mod m.
    """
    from .arguments.networks import read_engine
    from .arguments.prompts import prompted_conditions
    from .output.progress import sample_counter

    artifact = read_engine(engine, nfe=nfe, backend=backend, device=device)
    given = prompted_conditions(context, artifact.contract, engine)
    with sample_counter("generating") as progress:
        from ..engine.bulk.generate import generate as run

        settings: dict[str, Any] = {name: context.params[name] for name in PASSED_ON}
        done = run(engine, count, out, conditions=given, progress=progress, **settings)
    _print(done)


def _print(done: Generated) -> None:
    files = "1 shard" if done.shards == 1 else f"{done.shards} shards"
    kept = f", {done.shards - done.made} of them from before" if done.made < done.shards else ""
    print(
        f"{as_name(done.path)}: {done.count} samples of {done.nfe} evaluations in {files}{kept}, {done.seconds:.1f} s"
    )
    if len(done.made_by) > 1:
        print(f"made by {' and by '.join(done.made_by)}; these agree to rounding, not in every bit")
