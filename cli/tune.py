"""`pfdiff tune`: the search for the best sampler of a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .arguments import options
from .arguments.networks import SAMPLED, NetworkOrEngine, Reference, opened, takes
from .output.figures import as_name

if TYPE_CHECKING:
    from ..quality.ranking import Ranking

PASSED_ON = (  # options that `pfdiff.tune` takes by the same name and as they are
    *("metric", "criterion", "pictures", "features", "ray", "workers", "calibration", "held_out", "seed", "t_start"),
    *("reference", "refine", "buffers", "budget", "backend", "threads", "out"),
)

Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="Extend this engine with the best; built if missing, unless NETWORK is an engine."
    ),
]
Refine = Annotated[bool, typer.Option("--refine", help="Then polish the best one's coefficients.")]
Buffers = Annotated[
    int | None, options.parsed(options.integer, "--buffers", "States of a refined sampler, at most: 8.")
]
Metric = Annotated[str, typer.Option("--metric", help="error, to a reference, or fd, to real pictures.")]
Pictures = Annotated[str | None, typer.Option("--pictures", help="Real pictures, for fd and --refine.")]
Features = Annotated[str | None, typer.Option("--features", help="What measures them: see evaluate; filters.")]
OwnCriterion = Annotated[
    str | None, options.valued("FILE:NAME", "--criterion", "In place of a metric, a function: module.py:cost.")
]
Ray = Annotated[str | None, options.valued("ADDRESS", "--ray", "Draw on Ray, for fd: local, auto or HOST:PORT.")]
Budget = Annotated[str | None, typer.Option("--budget", help="Evaluations for each NFE, 20000, or a time, 2min.")]
OnlySolvers = Annotated[list[str] | None, options.valued("<str>", "--solver", "Only this one; repeatable.")]
Calibration = Annotated[int | None, options.parsed(options.integer, "--calibration", "Seeds that choose: 16; fd 512.")]
HeldOut = Annotated[int | None, options.parsed(options.natural, "--held-out", "Seeds that judge: 32; fd 512.")]
Seed = Annotated[int, options.parsed(options.natural, "--seed", "Which seeds.")]
Record = Annotated[
    Path | None, typer.Option("--json", callback=options.outside, help="Also write the record of the search here.")
]


@takes(SAMPLED)
def tune(
    context: typer.Context,
    network: NetworkOrEngine,
    nfe: options.EvaluationsList,
    out: Out = None,
    refine: Refine = False,
    buffers: Buffers = None,
    metric: Metric = "error",
    pictures: Pictures = None,
    features: Features = None,
    scale: options.Scale = "-1,1",
    criterion: OwnCriterion = None,
    ray: Ray = None,
    workers: options.Workers = None,
    budget: Budget = None,
    solver: OnlySolvers = None,
    clip: options.Clip = None,
    t_start: options.StartTime = None,
    calibration: Calibration = None,
    held_out: HeldOut = None,
    seed: Seed = 0,
    reference: Reference = None,
    json: Record = None,
) -> None:
    """Search the best solver, order, k and l, grid, basis and start for a network or an engine.

    The metric error needs no data. Interrupted, it goes on where it was when run again.
    The network's conditions are options too: --label 3; by default each label in turn.
    """
    from .arguments.values import integers_from, scale_from
    from .output.progress import meter

    evaluations, ends = integers_from("--nfe", nfe), scale_from(scale)
    with meter() as progress:
        progress("reading the network", 0, 0)
        found = opened(network, context)
        from ..quality.tune import tune as search

        settings: dict[str, Any] = {name: context.params[name] for name in PASSED_ON}
        settings |= {"scale": ends, "solvers": solver, "progress": progress}
        settings |= {"conditions": found.conditions, "clip": found.clip}
        rankings = [search(found.source, count, **settings) for count in evaluations]
    _report(rankings, json, out)


def _report(rankings: Sequence[Ranking], json: Path | None, out: Path | None) -> None:
    """The tables, the file of --json, and the line on the engine."""
    from .output.figures import write_json

    for ranking in rankings:
        print_ranking(ranking)
    if json is not None:
        write_json(json, {str(ranking.nfe): ranking.to_dict() for ranking in rankings})
    if out is not None:
        print(f"{as_name(out)}: NFE {', '.join(str(ranking.nfe) for ranking in rankings)}, each with its best sampler")
    else:
        print("no engine is written; with -o ENGINE the same command takes this from the cache and keeps the best")


def print_ranking(ranking: Ranking) -> None:
    """The first ten and the best DDIM, what the search cost, what refining did."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ..quality.ranking import COLUMNS

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in COLUMNS:
        numbers = name in ("rank", "start", "error", "held out")
        table.add_column(name, justify="right" if numbers else "left", overflow="fold", no_wrap=numbers)
    for row in ranking.table():
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    console.print(ranking.summary)
    console.print(table)
    best = ranking[0]
    for line in filter(None, (ranking.held_out_note, ranking.doubt, *ranking.left_out, ranking.guard, ranking.stored)):
        print(line)
    times = best.program.times if best.solver.endswith(" refined") else best.grid  # refining moves times
    if not isinstance(times, str):
        print(f"times of 1: {','.join(f'{t:.6g}' for t in times)}")
    ended = "" if ranking.complete else "; the budget ended the search early, without held-out seeds and refining"
    console.print(f"{ranking.evaluations} evaluations, {ranking.cached} of them cached, {ranking.seconds:.1f} s{ended}")
    if ranking.refinement:
        console.print(_refinement_line(ranking.refinement))


def _refinement_line(record: dict[str, Any]) -> str:
    from ..quality.ranking import error_text

    if record.get("skipped"):
        return record["skipped"]
    before, after = (error_text(record[name]) for name in ("held_out_before", "held_out_after"))
    errors = f": held-out error {before} before, {after} after" if before and after else ""
    losses = [record.get(f"held_out_loss_{when}") for when in ("before", "after")]
    if None not in losses:
        errors += f"; with features the held-out loss is {losses[0]:.3f} before, {losses[1]:.3f} after"
    if record["kept"]:
        regression = "by regression and " if (record.get("regression") or {}).get("kept") else ""
        how = "by regression" if record["method"] == "regression" else f"{regression}in {record['steps']} steps"
        return f"refined {record['from']} {how}, {trained_on(record)}{errors}"
    if "gain" not in record and None in losses:
        reason = "no step lowered the error, or the budget was spent"
        return f"refining {record['from']} changed nothing: {reason}; the unrefined one is kept"
    return f"refining {record['from']} gained no more than chance on held-out seeds{errors}; the unrefined one is kept"


def trained_on(record: dict[str, Any]) -> str:
    """`on 96 seeds, 3 buffers`: what a refined sampler was fitted to."""
    words = [f"on {record['training_seeds']} seeds"]
    words += [f"pixels and {record['features']}"] if record.get("features") else []
    words += [f"{record['real_pictures']} real pictures"] if record.get("real_pictures") else []
    words += [f"{record['buffers']} buffers"] if "buffers" in record else []
    return ", ".join(words)
