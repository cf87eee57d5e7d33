"""The demonstration: the shipped network sampled in 5 and 8 evaluations, timed, compared with a reference, drawn.

Every row starts from the noise of the same seeds, one for each class. The error is the RMS distance, in units of the
data's range [-1, 1], to DPM-Solver++(2M) in 200 evaluations of the same network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..engine.api import Engine
from ..engine.artifact import Artifact, read_artifact
from ..engine.compiler.compile import compile
from ..engine.errors import InputError
from ..export.build import build
from ..export.network import Network
from ..kernels import eager
from ..quality.pictures import write as pictures

NFE = (5, 8)
GRID = "uniform"  # of DDIM and of the reference; the shipped engine has the default sampler
REFERENCE, REFERENCE_NFE = "dpm++:2m", 200
ROUNDS = 10


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


def run(picture: Path, progress: Callable[[str], None]) -> Report:
    """Build fashion.engine beside `picture`, sample, and write the picture.

    Raises InputError when `picture` is no place for a PNG, EngineFileError when the engine cannot be written.
    """
    if pictures.kind_of(picture) != "grid":
        raise InputError(f"output {picture}: expected a file that ends in .png")
    path = picture.with_name("fashion.engine")
    progress("reading the shipped network")
    network = Network("fashion")
    shipped = build(network, NFE, batch=[1, 10, 64], out=path, progress=progress)
    artifact = read_artifact(path)
    plain = _with_solver(artifact, "ddim", NFE)
    many = _with_solver(artifact, REFERENCE, [REFERENCE_NFE])
    (label,) = artifact.contract.conditions
    seeds = range(len(label.labels))
    lines: list[Line] = []
    rows: list[pictures.Row] = []
    with shipped, Engine(plain) as ddim, Engine(many) as reference:
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
                caption = f"{_title(solver)}\n{nfe} evaluations\nRMS error {error:.3f}"
                rows.append(pictures.Row(caption, _pixels(samples)))
        description, default = shipped.description, shipped.programs[NFE[-1]]
    lines.append(Line(REFERENCE, REFERENCE_NFE, None, None))
    rows.append(pictures.Row(f"reference\n{REFERENCE_NFE} evaluations", _pixels(truth)))
    page = pictures.sheet(
        rows,
        headings=label.labels,
        title="Fashion-MNIST in a few network evaluations",
        note=f"One seed a column, the same noise in every row. {_title(default.solver)}, the default: {default.solver} "
        f"on {default.grid}, basis {default.basis}. DDIM and the reference, {REFERENCE}, on {GRID}.",
    )
    pictures.write_picture(picture, page)
    return Report(path, picture, description, len(seeds), tuple(lines))


def _with_solver(artifact: Artifact, solver: str, evaluations: Sequence[int]) -> Artifact:
    """The same network with other programs; nothing is written."""
    schedule, prediction = artifact.contract.schedule, artifact.contract.prediction
    programs = {nfe: compile(solver, schedule, nfe, GRID, prediction=prediction) for nfe in evaluations}
    return replace(artifact, programs=programs)


def _pixels(samples: torch.Tensor) -> NDArray[np.uint8]:
    count, channels, height, width = samples.shape
    pixels = torch.empty((count, height, width, channels), dtype=torch.uint8)
    eager.images(pixels, samples, -1.0, 1.0)
    return pixels.numpy()


def _title(solver: str) -> str:
    return {"ddim": "DDIM", "pfdiff:k=2,l=1": "PFDiff 2_1"}.get(solver, solver)
