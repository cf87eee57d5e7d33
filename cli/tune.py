"""`pfdiff tune` and `pfdiff compare`: the search for the best sampler, and errors side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..engine.errors import InputError
from . import options

if TYPE_CHECKING:
    from ..engine.contract import Contract
    from ..quality.compare import Comparison
    from ..quality.tune import Ranked, Ranking

SHOWN = 10  # rows of a ranking
OF_NETWORKS = (
    *("shape", "schedule", "prediction", "input_name", "time_name", "output_name", "condition"),
    *("time_scale", "time_dtype", "learned_sigma", "sigma_data"),
)
NetworkOrEngine = Annotated[
    str,
    typer.Argument(metavar="NETWORK", help="What build takes, or an engine directory."),
]
Calibration = Annotated[
    int, typer.Option("--calibration", parser=options.integer, metavar="<int>", help="Seeds that choose.")
]
Reference = Annotated[
    int | None,
    typer.Option("--reference", parser=options.integer, metavar="<int>", help="Evaluations of the reference."),
]


def register(app: typer.Typer) -> None:
    """Add both commands; what they do not know themselves are the network's conditions: --label 3."""
    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    app.command(context_settings=settings)(tune)
    app.command(context_settings=settings)(compare)


def tune(
    context: typer.Context,
    network: NetworkOrEngine,
    nfe: options.EvaluationsList,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Extend this engine with the best, or build one.")
    ] = None,
    refine: Annotated[bool, typer.Option("--refine", help="Then polish the best one's coefficients.")] = False,
    metric: Annotated[str, typer.Option("--metric", help="error, to a reference, or fd, to real pictures.")] = "error",
    pictures: Annotated[str | None, typer.Option("--pictures", help="Real pictures, for fd: a file or folder.")] = None,
    features: Annotated[str | None, typer.Option("--features", help="What measures them: see evaluate.")] = None,
    scale: Annotated[
        str, typer.Option("--scale", metavar="LOW,HIGH", help="What 0 and 255 become for your own features.")
    ] = "-1,1",
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="ADDRESS", help="Draw on Ray, for fd: local, auto or HOST:PORT.")
    ] = None,
    workers: options.Workers = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Evaluations for each NFE, 20000, or a time, 2min.")
    ] = None,
    solver: Annotated[
        list[str] | None, typer.Option("--solver", metavar="<str>", help="Only this one; repeatable.")
    ] = None,
    clip: options.Clip = None,
    t_start: options.StartTime = None,
    calibration: Annotated[
        int | None,
        typer.Option("--calibration", parser=options.integer, metavar="<int>", help="Seeds that choose: 16; fd 512."),
    ] = None,
    held_out: Annotated[
        int | None,
        typer.Option("--held-out", parser=options.natural, metavar="<int>", help="Seeds that judge: 32; fd 512."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", parser=options.natural, metavar="<int>", help="Which seeds.")] = 0,
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
    """Search the best solver, order, k and l, grid, basis and start for a network or an engine.

    The metric error needs no data. Interrupted, it goes on where it was when run again.
    The network's conditions are options too: --label 3; by default each label in turn.
    """
    from .info import write_json
    from .progress import meter
    from .values import integers_from, scale_from

    evaluations, ends = integers_from("--nfe", nfe), scale_from(scale)
    with meter() as progress:
        progress("reading the network", 0, 0)
        source, given = _opened(network, context)
        from ..quality.tune import tune as search

        rankings = [
            search(
                source,
                count,
                metric=metric,
                pictures=pictures,
                features=features,
                scale=ends,
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
        write_json(json, {str(ranking.nfe): ranking.to_dict() for ranking in rankings})
    if out is not None:
        print(f"{out}: NFE {', '.join(map(str, evaluations))}, each with its best sampler")


def compare(
    context: typer.Context,
    network: NetworkOrEngine,
    nfe: options.EvaluationsList,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The log plot, .png.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="The table.")] = None,
    sheet: Annotated[
        Path | None, typer.Option("--pictures", help="Rows solvers, columns NFE, the same seeds, .png.")
    ] = None,
    solver: Annotated[
        list[str] | None,
        typer.Option("--solver", metavar="<str>", help="solver, solver@grid or solver@grid/basis; repeatable."),
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option("--grid", help="Where a solver has none; best: by the calibration seeds; default: as build."),
    ] = None,
    basis: options.Basis = None,
    clip: options.Clip = None,
    t_start: options.StartTime = None,
    seeds: Annotated[
        int, typer.Option("--seeds", parser=options.integer, metavar="<int>", help="How many the errors are of.")
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
    """Error against network evaluations for any list of solvers: table, log plot, pictures.

    The network's conditions are options too: --label 3; by default each label in turn.
    """
    from .progress import meter
    from .values import integers_from

    evaluations = integers_from("--nfe", nfe)
    with meter() as progress:
        progress("reading the network", 0, 0)
        source, given = _opened(network, context)
        from ..quality.compare import SOLVERS
        from ..quality.compare import compare as measure

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
def _opened(network: str, context: typer.Context) -> tuple[Any, dict[str, Any]]:
    """(a Network, or the path of an engine directory; the conditions that the command line gives)."""
    from ..engine.artifact import MANIFEST, read_artifact
    from .values import given_conditions, network_words

    contract: Contract
    extra = context.args
    if (Path(network) / MANIFEST).is_file():
        _check_of_no_network(network, context)
        source, contract = Path(network), read_artifact(network).contract
        guidance = context.params["guidance"]
        extra = [*extra, "--guidance", guidance] if guidance else extra  # of an engine it is the scale
    else:
        from .. import Network

        source = Network(network, **network_words(network, context.params))
        contract = source.contract
    return source, given_conditions(extra, contract)


def _check_of_no_network(engine: str, context: typer.Context) -> None:
    """An engine says itself what its network is. Raises InputError on an option that says it again."""
    for option in context.command.params:
        if option.name in OF_NETWORKS and context.params[option.name]:
            raise InputError(f"{engine} is an engine, which has its own {option.opts[0]}; leave it out")


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
    for place in _shown_places(ranking):
        one = ranking[place]
        start = f"{one.t_start:.4g}"
        errors = (_error(one.error), _error(one.held_out_error))
        table.add_row(str(place + 1), one.solver, _grid(one), one.basis, start, *errors)
    console = Console(highlight=False, markup=False)
    seeds = f"{ranking.calibration} calibration and {ranking.held_out} held-out seeds"
    console.print(f"NFE {ranking.nfe}: {ranking.criterion}, {seeds}")
    console.print(table)
    best = ranking[0]
    if not isinstance(best.grid, str):
        print(f"times of 1: {','.join(f'{t:.6g}' for t in best.grid)}")
    ended = "" if ranking.complete else "; the budget ended the search early, without held-out seeds and refining"
    console.print(f"{ranking.evaluations} evaluations, {ranking.cached} of them cached, {ranking.seconds:.1f} s{ended}")
    if ranking.refinement:
        console.print(_refinement_line(ranking.refinement))


def _shown_places(ranking: Ranking) -> list[int]:
    """The first ten and the best DDIM; of samplers that differ in single times only, the best."""
    seen: set[tuple[str, str, str]] = set()
    places: list[int] = []
    for place, one in enumerate(ranking):
        name = (one.solver, _grid(one), one.basis)
        first_ddim = one.solver == "ddim" and all(ranking[earlier].solver != "ddim" for earlier in places)
        if name not in seen and (len(places) < SHOWN or first_ddim):
            places.append(place)
        seen.add(name)
    return places


def _grid(one: Ranked) -> str:
    return one.grid if isinstance(one.grid, str) else f"{len(one.grid)} times"


def _error(value: float | None) -> str:
    """Four decimals, or two digits below 0.001; nothing for None."""
    return "" if value is None else f"{value:.4f}" if value >= 0.001 else f"{value:.1e}"


def _refinement_line(record: dict[str, Any]) -> str:
    before, after = (_error(record[name]) for name in ("held_out_before", "held_out_after"))
    errors = f": held-out error {before} before, {after} after" if before and after else ""
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
        table.add_row(sampler, *(_error(one.error) for one in points))
        notes += [f"{sampler}, NFE {one.nfe}: {one.note}" for one in points if one.note]
    console = Console(highlight=False, markup=False)
    console.print(table)
    reference, spent = result.reference, f"{result.evaluations} evaluations, {result.cached} of them cached"
    console.print(
        f"RMS distance to {reference.solver} in {reference.nfe} evaluations, {result.seeds} seeds; "
        f"{spent}, {result.seconds:.1f} s"
    )
    for note in notes:
        console.print(note)
