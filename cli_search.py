"""`pfdiff tune` and `pfdiff compare`: the search for the best sampler, and errors side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import cli_options as options

if TYPE_CHECKING:
    from .engine.contract import Contract
    from .export.compare import Comparison
    from .export.tune import Ranking

SHOWN = 10  # rows of a ranking
Solvers = Annotated[
    list[str] | None,
    typer.Option("--solver", metavar="TEXT", help="Only this one; repeatable. compare: also solver@grid/basis."),
]
Calibration = Annotated[
    int, typer.Option("--calibration", parser=options.integer, metavar="INT", help="Seeds that choose.")
]
Reference = Annotated[
    int | None,
    typer.Option("--reference", parser=options.integer, metavar="INT", help="Evaluations of the reference."),
]


def register(app: typer.Typer) -> None:
    """Add both commands; what they do not know themselves are the network's conditions: --label 3."""
    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    app.command(context_settings=settings)(tune)
    app.command(context_settings=settings)(compare)


def tune(
    context: typer.Context,
    network: options.NetworkArgument,
    nfe: options.EvaluationsList,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="PATH", help="Write the best into this engine directory.")
    ] = None,
    refine: Annotated[bool, typer.Option("--refine", help="Then polish the best one's coefficients.")] = False,
    metric: Annotated[str, typer.Option("--metric", help="error, to a reference, or fd, to real pictures.")] = "error",
    pictures: Annotated[str | None, typer.Option("--pictures", help="Real pictures, for fd: a file or folder.")] = None,
    features: Annotated[str | None, typer.Option("--features", help="What measures them: see evaluate.")] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="ADDRESS", help="Draw on Ray, for fd: local, auto or HOST:PORT.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", parser=options.integer, metavar="INT", help="On Ray; default: what it has room for."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Evaluations for each NFE, 20000, or a time, 2min.")
    ] = None,
    solver: Solvers = None,
    clip: options.Clip = None,
    t_start: options.StartTime = None,
    calibration: Annotated[
        int | None,
        typer.Option("--calibration", parser=options.integer, metavar="INT", help="Seeds that choose: 16; fd 512."),
    ] = None,
    held_out: Annotated[
        int | None,
        typer.Option("--held-out", parser=options.integer, metavar="INT", help="Seeds that judge: 32; fd 512."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which seeds.")] = 0,
    reference: Reference = None,
    json: Annotated[Path | None, typer.Option("--json", help="Also write the record of the search here.")] = None,
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
    backend: options.Backend = "auto",
    threads: options.Threads = None,
) -> None:
    """Search the best solver, order, k and l, grid, basis and start for a network; the metric error needs no data.

    Interrupted, it goes on where it was when run again.
    """
    from .cli_progress import meter
    from .cli_words import integers_from

    evaluations = integers_from("--nfe", nfe)
    words = {
        "shape": shape,
        "output": output_name,
        "conditions": condition,
        "schedule": schedule,
        "prediction": prediction,
        "input": input_name,
        "time": time_name,
        "time_scale": time_scale,
        "time_dtype": time_dtype,
        "learned_sigma": learned_sigma,
        "sigma_data": sigma_data,
        "guidance": guidance,
    }
    with meter() as progress:
        progress("reading the network", 0, 0)
        source, given = _opened(network, context.args, words)
        from .export.tune import tune as search

        rankings = [
            search(
                source,
                count,
                metric=metric,
                pictures=pictures,
                features=features,
                ray=ray,
                workers=workers,
                calibration=calibration,
                held_out=held_out,
                seed=seed,
                solvers=solver,
                clip=clip,
                t_start=t_start,
                conditions=given,
                reference=reference,
                refine=refine,
                budget=budget,
                backend=backend,
                threads=threads,
                out=out,
                progress=progress,
            )
            for count in evaluations
        ]
    for ranking in rankings:
        print_ranking(ranking)
    if json is not None:
        _write_json(json, {str(ranking.nfe): ranking.to_dict() for ranking in rankings})
    if out is not None:
        print(f"{out}: NFE {', '.join(map(str, evaluations))}, each with its best sampler")


def compare(
    context: typer.Context,
    network: options.NetworkArgument,
    nfe: options.EvaluationsList,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="PATH", help="The log plot, .png.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="The table.")] = None,
    sheet: Annotated[
        Path | None, typer.Option("--pictures", help="Rows solvers, columns NFE, the same seeds, .png.")
    ] = None,
    solver: Solvers = None,
    grid: Annotated[str, typer.Option("--grid", help="Where none is said; best: on calibration seeds.")] = "logsnr",
    basis: options.Basis = None,
    clip: options.Clip = None,
    t_start: options.StartTime = None,
    seeds: Annotated[
        int, typer.Option("--seeds", parser=options.integer, metavar="INT", help="Seeds of the errors.")
    ] = 32,
    calibration: Calibration = 16,
    reference: Reference = None,
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
    backend: options.Backend = "auto",
    threads: options.Threads = None,
) -> None:
    """Error against network evaluations for any list of solvers: table, log plot, pictures."""
    from .cli_progress import meter
    from .cli_words import integers_from

    evaluations = integers_from("--nfe", nfe)
    words = {
        "shape": shape,
        "output": output_name,
        "conditions": condition,
        "schedule": schedule,
        "prediction": prediction,
        "input": input_name,
        "time": time_name,
        "time_scale": time_scale,
        "time_dtype": time_dtype,
        "learned_sigma": learned_sigma,
        "sigma_data": sigma_data,
        "guidance": guidance,
    }
    with meter() as progress:
        progress("reading the network", 0, 0)
        source, given = _opened(network, context.args, words)
        from .export.compare import SOLVERS
        from .export.compare import compare as measure

        result = measure(
            source,
            evaluations,
            solver or SOLVERS,
            grid=grid,
            basis=basis,
            clip=clip,
            t_start=t_start,
            seeds=seeds,
            calibration=calibration,
            conditions=given,
            reference=reference,
            backend=backend,
            threads=threads,
            out=out,
            csv=csv,
            sheet=sheet,
            progress=progress,
        )
    print_comparison(result)
    for path in filter(None, (out, csv, sheet)):
        print(path)


# What goes in.
def _opened(network: str, extra: Sequence[str], words: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(a Network, or the path of an engine directory; the conditions that the command line gives)."""
    from .cli_words import conditions_from, network_words
    from .engine.artifact import MANIFEST, read_artifact

    contract: Contract
    if (Path(network) / MANIFEST).is_file():
        source, contract = Path(network), read_artifact(network).contract
        guidance = words["guidance"]
        extra = [*extra, "--guidance", guidance] if guidance else extra  # of an engine it is the scale
    else:
        from . import Network

        source = Network(network, **network_words(network, **words))
        contract = source.contract
    given = conditions_from(extra, contract, 1) if extra else {}
    return source, {name: values[0] for name, values in given.items()}


# What comes out.
def print_ranking(ranking: Ranking) -> None:
    """The first ten and the best DDIM, what the search cost, what refining did."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("", "solver", "grid", "basis", "start"):
        table.add_column(name, justify="right" if name in ("", "start") else "left", overflow="fold")
    for name in ("error", "held out"):
        table.add_column(name, justify="right", no_wrap=True)
    plain = next((place for place, one in enumerate(ranking) if one.solver == "ddim"), None)
    for place, one in enumerate(ranking):
        if place < SHOWN or place == plain:
            grid = one.grid if isinstance(one.grid, str) else f"{len(one.grid)} times"
            held = "" if one.held_out_error is None else f"{one.held_out_error:.4f}"
            start = f"{one.t_start:.4g}"
            table.add_row(str(place + 1), one.solver, grid, one.basis, start, f"{one.error:.4f}", held)
    print(f"NFE {ranking.nfe}: {ranking.criterion},", end=" ")
    print(f"{ranking.calibration} calibration and {ranking.held_out} held-out seeds")
    Console(highlight=False).print(table)
    ended = "" if ranking.complete else "; the budget ended the search early"
    print(f"{ranking.evaluations} evaluations, {ranking.cached} of them cached, {ranking.seconds:.1f} s{ended}")
    if ranking.refinement:
        print(_refinement_line(ranking.refinement))


def _refinement_line(record: dict[str, Any]) -> str:
    before, after = (record[name] for name in ("held_out_before", "held_out_after"))
    errors = "" if before is None or after is None else f": held-out error {before:.4f} before, {after:.4f} after"
    if record["kept"]:
        return f"refined {record['from']} in {record['steps']} steps{errors}"
    return f"refining {record['from']} gained nothing on held-out seeds{errors}; the unrefined one is kept"


def print_comparison(result: Comparison) -> None:
    """Rows solvers, columns NFE."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("solver", overflow="fold")
    for count in result.nfe:
        table.add_column(f"NFE {count}", justify="right", no_wrap=True)
    notes: list[str] = []
    for sampler in result.samplers:
        points = result.of(sampler)
        table.add_row(sampler, *("" if one.error is None else f"{one.error:.4f}" for one in points))
        notes += [f"{sampler}, NFE {one.nfe}: {one.note}" for one in points if one.note]
    Console(highlight=False).print(table)
    print(
        f"RMS distance to {result.reference.solver} in {result.reference.nfe} evaluations, {result.seeds} seeds;",
        end=" ",
    )
    print(f"{result.evaluations} evaluations, {result.cached} of them cached, {result.seconds:.1f} s")
    for note in notes:
        print(note)


def _write_json(path: Path, data: Any) -> None:
    import json

    from .engine.errors import InputError

    try:
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--json {path}: {error.strerror}; choose a file that can be written") from None
