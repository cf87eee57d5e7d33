"""`pfdiff evaluate`: distances of samples to real pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .arguments import options
from .output.figures import as_name

if TYPE_CHECKING:
    from ..quality.evaluate import Evaluation

# Options that `pfdiff.evaluate` takes by the same name and as they are.
PASSED_ON = ("features", "nfe", "count", "first", "device", "backend", "threads")


def evaluate(
    context: typer.Context,
    samples: Annotated[
        str, typer.Argument(metavar="SAMPLES", help="An engine, or pictures: .npz, .npy, .parquet, .png, a folder.")
    ],
    reference: Annotated[str, typer.Option("--reference", help="The real pictures: a file or a folder likewise.")],
    features: Annotated[
        str, typer.Option("--features", help="fashion, inception:FILE, judge.onnx:OUTPUT or judge.py:factory.")
    ],
    nfe: options.Evaluations = None,
    count: Annotated[
        int | None, options.parsed(options.integer, "--count", "Samples of the engine; default: 10000.")
    ] = None,
    first: Annotated[int, options.parsed(options.natural, "--first", "The first seed.")] = 0,
    scale: options.Scale = "-1,1",
    json: Annotated[
        Path | None, typer.Option("--json", callback=options.outside, help="Also write the report here.")
    ] = None,
    prompt: options.Prompts = None,
    negative_prompt: options.NegativePrompts = None,
    backend: options.Backend = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
) -> None:
    """Frechet, spatial and kernel distance, precision and recall of samples against real pictures."""
    from .arguments.values import scale_from
    from .output.figures import write_figures
    from .output.progress import meter

    ends, conditions = scale_from(scale), _conditions(samples, context)
    with meter() as progress:
        progress("loading", 0, 0)
        from ..quality.evaluate import evaluate as measure

        settings: dict[str, Any] = {name: context.params[name] for name in PASSED_ON}
        report = measure(samples, reference, conditions=conditions, scale=ends, progress=progress, **settings)
    print_evaluation(report)
    if json is not None:
        write_figures(json, report.to_dict())


def _conditions(samples: str, context: typer.Context) -> dict[str, Any] | None:
    """The conditions that the command line gives to an engine; several values are taken in turn."""
    from ..engine.artifact import MANIFEST
    from .arguments.networks import read_engine
    from .arguments.prompts import prompted_conditions

    params = context.params
    asked = context.args or params["prompt"] or params["negative_prompt"]
    if not (Path(samples) / MANIFEST).is_file() and not asked:
        return None
    artifact = read_engine(Path(samples), nfe=params["nfe"], backend=params["backend"], device=params["device"])
    found = prompted_conditions(context, artifact.contract, Path(samples))
    return found if asked else None


def print_evaluation(report: Evaluation) -> None:
    """The report in lines that fit 80 columns."""
    drawn = report.drawn
    source = drawn["engine"] if "engine" in drawn else drawn["files"]
    if "nfe" in drawn:
        solver = f"{drawn['solver']}, " if "solver" in drawn else ""
        print(f"{as_name(source)}: {solver}{drawn['nfe']} evaluations, seeds {drawn['seeds']}")
    else:
        print(as_name(source))
    print(f"{report.samples} samples, {report.real} pictures of the reference {report.reference}")
    called = "" if report.names[0] == "FID" else "; so not FID"
    print(f"features {report.extractor}, SHA-256 {report.extractor_digest[:12]}{called}\n")
    rows = [(report.names[0], f"{report.distance:z.4f}")]
    if report.spatial_distance is not None:
        rows.append((report.names[1], f"{report.spatial_distance:z.4f}"))
    spread = f"{report.kernel_spread:.6f}"  # none where every subset is all of both sets
    spread = f" ± {spread}" if float(spread) else ""
    rows.append((report.names[2], f"{report.kernel_distance:z.6f}{spread}"))
    rows.append(("precision", f"{report.precision:.4f}"))
    rows.append(("recall", f"{report.recall:.4f}, both of {report.compared} pictures each"))
    for name, value in rows:
        print(f"{name:<10} {value}")
