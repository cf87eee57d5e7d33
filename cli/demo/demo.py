"""`pfdiff demo`: the shipped network sampled in 5 and 8 evaluations, timed, compared with a reference, drawn.

Every row starts from the noise of the same seeds, one for each class. The error is the RMS distance, in units of the
data's range [-1, 1], to DPM-Solver++(2M) in 200 evaluations of the same network.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...engine.errors import InputError
from ..arguments import options

if TYPE_CHECKING:
    from ...engine.artifact import Artifact
    from ...quality.pictures.sheet import Row

NFE = (5, 8)
SOLVER, GRID, BASIS = "pfdiff:k=2,l=1", "uniform", "eps"
REFERENCE, REFERENCE_NFE = "dpm++:2m", 200
TITLES = {"ddim": "DDIM", SOLVER: "PFDiff 2_1"}
ROUNDS = 10
PICTURE = Path("demo.png")


@dataclass(frozen=True)
class Line:
    """One sampler: `ms` for one sample alone (p50) and `error` (RMS to the reference), both None for the reference."""

    solver: str
    nfe: int
    ms: float | None
    error: float | None


@dataclass(frozen=True)
class Report:
    """What the demonstration found. `description` names the backend, its version, precision and threads."""

    engine: Path
    picture: Path
    description: str
    samples: int
    lines: tuple[Line, ...]


def demo(
    what: Annotated[str, typer.Argument(metavar="[fashion|policy]", help="Pictures, or a robot's policy.")] = "fashion",
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture to write; policy.gif of policy.")] = PICTURE,
    json: options.JsonFile = None,
) -> None:
    """Sample a shipped network with DDIM, PFDiff and more, print time and quality, write a picture."""
    if what not in ("fashion", "policy"):
        raise InputError(f"demo '{what}', expected fashion or policy")
    if what == "policy":
        _policy(Path("policy.gif") if out == PICTURE else out, json)
        return
    from ..output.progress import stages

    with stages() as progress:
        progress("starting")
        report = run(out, progress)
    print_demo(report)
    if json:
        from ..output.figures import write_figures

        lines = [asdict(line) for line in report.lines]
        write_figures(json, {"description": report.description, "samples": report.samples, "figures": lines})


def _policy(out: Path, json: Path | None) -> None:
    from ..output.progress import stages
    from . import policy as demo_policy

    with stages() as progress:
        report = demo_policy.run(out, progress)
    demo_policy.print_demo(report)
    if json:
        from ..output.figures import write_figures

        figures = {"description": report.description, "episodes": report.episodes, "expert": report.expert}
        write_figures(json, {**figures, "figures": [asdict(line) for line in report.lines]})


def run(picture: Path, progress: Callable[[str], None]) -> Report:
    """Build fashion.engine beside `picture`, sample, and write the picture.

    Raises InputError when `picture` is no place for a PNG, EngineFileError when the engine cannot be written.
    """
    from ...quality.pictures.write import kind_of

    if kind_of(picture) != "grid":
        raise InputError(f"output {picture}: expected a file that ends in .png")
    from ...engine.api import Engine
    from ...engine.artifact import read_artifact
    from ...export.build import build
    from ...export.network import Network
    from ...quality.pictures.pixels import pixels_of
    from ...quality.pictures.sheet import Row

    path = picture.with_name("fashion.engine")
    progress("reading the shipped network")
    network = Network("fashion")
    shipped = build(network, NFE, SOLVER, grid=GRID, basis=BASIS, batch=[1, 10, 64], out=path, progress=progress)
    artifact = read_artifact(path)
    plain = _with_solver(artifact, "ddim", NFE)
    many = _with_solver(artifact, REFERENCE, [REFERENCE_NFE])
    (label,) = artifact.contract.conditions
    seeds = range(len(label.labels))
    lines: list[Line] = []
    rows: list[Row] = []
    with shipped, Engine.open(plain) as ddim, Engine.open(many) as reference:
        progress(f"reference: {len(seeds)} samples in {REFERENCE_NFE} evaluations")
        truth = reference.sample(seeds=seeds, label=list(seeds))
        for nfe in NFE:
            for engine in (ddim, shipped):
                solver = engine.programs[nfe].solver
                progress(f"{solver}: {nfe} evaluations")
                samples = engine.sample(seeds=seeds, nfe=nfe, label=list(seeds))
                error = float((samples - truth).square().mean().sqrt())
                ms = engine.bench(nfe, 1, ROUNDS).per_sample_ms
                lines.append(Line(solver, nfe, ms, error))
                caption = f"{TITLES[solver]}\n{nfe} evaluations\nRMS error {error:.3f}"
                rows.append(Row(caption, pixels_of(samples.numpy())))
        description = shipped.description
    lines.append(Line(REFERENCE, REFERENCE_NFE, None, None))
    rows.append(Row(f"reference\n{REFERENCE_NFE} evaluations", pixels_of(truth.numpy())))
    _write(picture, rows, label.labels)
    return Report(path, picture, description, len(seeds), tuple(lines))


def _with_solver(artifact: Artifact, solver: str, evaluations: Sequence[int]) -> Artifact:
    """The same network with other programs; nothing is written."""
    from ... import compile

    schedule, prediction = artifact.contract.schedule, artifact.contract.prediction
    programs = {nfe: compile(solver, schedule, nfe, GRID, prediction=prediction) for nfe in evaluations}
    return replace(artifact, programs=programs)


def _write(picture: Path, rows: Sequence[Row], headings: Sequence[str]) -> None:
    """The page: one row a sampler, one column a seed."""
    from ...quality.pictures.sheet import sheet
    from ...quality.pictures.write import write_picture

    page = sheet(
        rows,
        headings=headings,
        title="Fashion-MNIST in a few network evaluations",
        note=f"One seed a column, the same noise in every row. {TITLES[SOLVER]}: {SOLVER}, "
        f"basis {BASIS}; reference: {REFERENCE}. Grid: {GRID}.",
    )
    write_picture(picture, page)


def print_demo(report: Report) -> None:
    """The demonstration's lines, and where picture and engine are."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("solver")
    for name in ("evaluations", "ms a sample", "RMS error to the reference"):
        table.add_column(name, justify="right")
    for line in report.lines:
        ms = "" if line.ms is None else f"{line.ms:.1f}"
        error = "reference" if line.error is None else f"{line.error:.3f}"
        table.add_row(line.solver, str(line.nfe), ms, error)
    console.print(f"fashion, {report.samples} seeds, one for each class; {report.description}")
    console.print(table)
    print(f"wrote {report.picture} and {report.engine}")
    print(f"next: {_started_as()} sample {report.engine} --nfe 8 --label bag -o bags.png")


def _started_as() -> str:
    """`pfdiff`, or the path that it was started by where the shell would not find it."""
    return sys.argv[0] if Path(sys.argv[0]).name == "pfdiff" and not shutil.which("pfdiff") else "pfdiff"
