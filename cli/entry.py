"""The command line. One function a command; each imports what it needs when it runs, so that --help is quick.

Bad input ends with status 2 and one line on stderr; an interruption with 130. Results go to stdout, progress to
stderr and only to a terminal.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..engine.errors import InputError, PfdiffError
from . import bench as cli_bench
from . import evaluate as cli_evaluate
from . import export as cli_export
from . import generate as cli_generate
from . import kernels as cli_kernels
from . import options
from . import serve as cli_serve
from . import tune as cli_search

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
# BadParameter < UsageError < ClickException; Typer keeps the last in its own copy of Click.
ClickException: Any = typer.BadParameter.__mro__[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0, 2 after bad input, 130 after an interruption."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _announce
            status = app(words, prog_name="pfdiff", standalone_mode=False)
        if status == 130:
            return _fail("interrupted", 130)
        return status if isinstance(status, int) else 0
    except ClickException as error:
        return _fail(_with_help(error))
    except PfdiffError as error:
        return _fail(str(error))
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        return _fail(
            f"{error.filename or 'the system'}: {error.strerror or error}; check the path, its rights and the disk"
        )
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)


def _announce(message: Warning | str, *_: object, **__: object) -> None:
    """What the library announces once, such as a plan that is built, in one line on stderr."""
    print("pfdiff:", " ".join(str(message).split()), file=sys.stderr)


def _with_help(error: Any) -> str:
    """What a command says of words that it refuses, and where its help is, if it does not ask "did you mean"."""
    message = error.format_message()
    command = error.ctx.command_path if error.ctx else "pfdiff"
    return message if message.endswith("?") else f"{message.rstrip('.')}; see {command} --help"


def _fail(message: str, status: int = 2) -> int:
    print("pfdiff:", " ".join(message.split()), file=sys.stderr)
    return status


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print("pfdiff", version("pfdiff"))
        raise typer.Exit


@app.callback()
def pfdiff(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Few-step diffusion samplers, compiled into small tables and run on your own network."""


@app.command()
def build(
    context: typer.Context,
    network: options.NetworkArgument,
    nfe: options.EvaluationsList,
    out: options.EngineOut = None,
    shape: options.Shape = None,
    schedule: options.Schedule = None,
    prediction: options.Prediction = None,
    input_name: options.InputName = None,
    time_name: options.TimeName = None,
    output_name: options.OutputName = None,
    condition: options.ConditionOption = None,
    time_scale: options.TimeScale = None,
    time_dtype: options.TimeDtype = None,
    learned_sigma: options.LearnedSigma = False,
    sigma_data: options.SigmaData = None,
    guidance: options.Guidance = None,
    decoder: options.DecoderOption = None,
    solver: options.Solver = "pfdiff:k=2,l=1",
    grid: options.GridOption = None,
    basis: options.Basis = None,
    clip: options.Clip = None,
    t_start: options.StartTime = None,
    end: options.EndTime = None,
    batch: options.Batch = None,
    precision: options.Precision = "fp32",
    backend: options.Backend = "auto",
    device: options.Device = "auto",
    target: options.Target = None,
    threads: options.Threads = None,
) -> None:
    """Turn a network into an engine directory."""
    from .progress import stages
    from .values import end_from, grid_from, integers_from, network_words

    words = network_words(network, context.params)
    settings: dict[str, Any] = {"basis": basis, "clip": clip, "t_start": t_start}
    settings |= {"precision": precision, "backend": backend, "device": device, "threads": threads, "out": out}
    settings |= {"target": target or (), "end": end_from(end) if end else None}
    settings |= {"grid": grid_from(grid) if grid else None, "batch": integers_from("--batch", batch) if batch else None}
    evaluations = integers_from("--nfe", nfe)
    with stages() as progress:
        progress("reading the network")
        from .. import Network
        from .. import build as build_engine

        source = Network(network, **words)
        settings |= {"progress": progress, "plan_progress": progress.step}
        with build_engine(source, evaluations, solver, **settings) as engine:
            programs = [engine.programs[count] for count in evaluations]
    print(progress.last)
    from ..quality.sampling.reference import doubt_of_start

    for doubt in list(filter(None, map(doubt_of_start, programs)))[:1]:
        print("pfdiff:", doubt, file=sys.stderr)


# Options that no command declares are the network's own conditions: --label 3.
@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def sample(
    context: typer.Context,
    engine: options.EngineArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help=".png (one grid), .npy, .npz, or a folder of PNGs.")],
    nfe: options.Evaluations = None,
    seeds: Annotated[str, typer.Option("--seeds", help="One image each: 0-15, or 0,3,7.")] = "0-15",
    backend: options.Backend = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
) -> None:
    """Draw samples: one image a seed. The network's conditions are options too: --label 3."""
    from ..quality.pictures import write as pictures
    from .progress import bar, opened
    from .values import conditions_from, seeds_from

    chosen, kind = seeds_from(seeds), pictures.kind_of(out)
    with opened(engine, device, backend, threads) as loaded:
        if kind in ("grid", "folder"):
            pictures.check_shape(loaded.decoder.image if loaded.decoder else loaded.contract.shape)
        evaluations = _only_nfe(sorted(loaded.programs)) if nfe is None else nfe
        conditions = conditions_from(context.args, loaded.contract, len(chosen))
        draw = loaded.images if kind in ("grid", "folder") else loaded.sample
        batch = max(loaded.batch)
        parts = []
        for start in bar(range(0, len(chosen), batch), "sampling"):
            part = slice(start, start + batch)
            values = {name: value[part] for name, value in conditions.items()}
            parts.append(draw(seeds=chosen[part], nfe=evaluations, **values))
    import numpy as np

    results = np.concatenate([part.cpu().numpy() for part in parts])
    if kind in ("grid", "folder"):
        pictures.write_images(out, results, chosen)
    else:
        pictures.write_samples(out, results, chosen, conditions)
    print(f"{out}: {len(chosen)} {'sample' if len(chosen) == 1 else 'samples'}, {evaluations} evaluations each")


@app.command()
def info(
    engine: options.EngineArgument,
    nfe: Annotated[
        int | None,
        typer.Option("--nfe", parser=options.integer, metavar="<int>", help="This program, with its table."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    device: Annotated[
        str | None, typer.Option("--device", help="Run one sample on auto, cpu, cuda or cuda:N and say how.")
    ] = None,
) -> None:
    """Say what an engine holds: network, programs, times, files, plans; with --device also how it runs there."""
    from . import info as cli_tables
    from .progress import opened

    running = None
    if device is not None:
        with opened(engine, device) as loaded:
            running = cli_tables.how_it_runs(loaded)
    cli_tables.print_info(engine, nfe=nfe, as_json=json, running=running)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture to write.")] = Path("demo.png"),
    json: options.JsonFile = None,
) -> None:
    """Sample the shipped network with DDIM and PFDiff, print time and error, write one picture."""
    from . import info as cli_tables
    from .progress import stages

    with stages() as progress:
        progress("starting")
        from . import demo as shipped

        report = shipped.run(out, progress)
    cli_tables.print_demo(report)
    if json:
        lines = [asdict(line) for line in report.lines]
        cli_tables.write_figures(json, {"description": report.description, "samples": report.samples, "figures": lines})


cli_bench.register(app)
cli_search.register(app)
cli_evaluate.register(app)
cli_generate.register(app)
cli_export.register(app)
cli_kernels.register(app)
cli_serve.register(app)


def _only_nfe(held: list[int]) -> int:
    if len(held) == 1:
        return held[0]
    raise InputError(f"--nfe is missing and this engine has several; choose one of {', '.join(map(str, held))}")
