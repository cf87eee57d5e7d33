"""The distilled network beside its teacher: `python -m pfdiff.bench.studies.samplers.distilled_tables --data DIR`.

`fashion-distilled` with the samplers of distilled networks, and `fashion` with solvers, alone and under the guidance
that the student was distilled from. A row is one sampler at one number of evaluations: class agreement by the shipped
classifier and the Frechet distance on its features to the training set (not FID), of the same seeds, classes in turn.
A guided evaluation is two passes of the network. What stands in OUT is not measured again, so a run that was stopped
goes on; the picture is made of what is there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

import pfdiff

from ....engine.atomic import replacing
from ....export.zoo.distil_fashion import GUIDANCE
from ....export.zoo.fashion import CLASSES
from ....export.zoo.fashion_classifier import load_classifier
from ....export.zoo.fashion_data import load_fashion
from ....quality.distances.features import extractor
from ....quality.distances.metrics import FrechetDistance
from ....quality.distances.real_pictures import reference_features
from ....quality.pictures.sheet import Row, sheet
from ....quality.pictures.write import write_picture
from ...measuring.machine import RESULTS, describe

BATCH, SHOWN = 100, 10
STUDENT, TEACHER = "fashion-distilled", "fashion"


@final
@dataclass(frozen=True)
class Cell:
    """One sampler of one network at one NFE; guidance 1 is none."""

    network: str
    guidance: float
    solver: str
    grid: str
    nfe: int

    @property
    def key(self) -> str:
        return f"{self.network} {self.guidance:g} {self.solver}@{self.grid} {self.nfe}"

    @property
    def passes(self) -> int:
        return self.nfe * (1 if self.guidance == 1 else 2)


def cells() -> Iterator[Cell]:
    """All rows, the student's first."""
    yield from (Cell(STUDENT, 1, "consistency", "trailing", nfe) for nfe in (1, 2, 4))
    yield from (Cell(STUDENT, 1, solver, "trailing", nfe) for solver in ("lcm", "tcd:gamma=0.3") for nfe in (2, 4))
    yield from (Cell(TEACHER, 1, "ddim", "uniform", nfe) for nfe in (1, 2, 4, 8))
    yield from (Cell(TEACHER, 1, "pfdiff:k=2,l=1", "uniform", nfe) for nfe in (2, 4, 8))
    yield from (Cell(TEACHER, 1, "deis:order=3", "uniform", nfe) for nfe in (2, 4, 8, 20))
    yield from (Cell(TEACHER, GUIDANCE, "deis:order=3", "uniform", nfe) for nfe in (2, 4, 8))


def draw(cell: Cell, count: int, folder: Path, threads: int) -> np.ndarray:
    """Pictures uint8 [count, 28, 28, 1] of seeds 0, 1, ..., classes in turn."""
    guidance = None if cell.guidance == 1 else f"label,scale={cell.guidance:g}"
    network = pfdiff.Network(cell.network, guidance=guidance)
    settings: dict[str, Any] = {"grid": cell.grid, "batch": BATCH, "threads": threads, "out": folder / "one.engine"}
    with pfdiff.build(network, cell.nfe, cell.solver, **settings) as engine:
        return engine.images(seeds=range(count), nfe=cell.nfe, label=np.arange(count) % len(CLASSES)).numpy()


@torch.inference_mode()
def judged(pixels: np.ndarray, distance: FrechetDistance) -> dict[str, float]:
    """Class agreement, its standard error, and the Frechet distance."""
    features = extractor("fashion")(pixels).pooled
    answers = load_classifier().head(torch.from_numpy(np.asarray(features)).float()).argmax(1).numpy()
    share = float((answers == np.arange(len(pixels)) % len(CLASSES)).mean())
    error = (share * (1 - share) / len(pixels)) ** 0.5
    return {"class_agreement": round(share, 4), "standard_error": round(error, 4), "fd": round(distance(features), 4)}


def main() -> None:
    """Measure what is missing, and write table and picture."""
    parser = argparse.ArgumentParser(description="The distilled fashion network beside its teacher.")
    parser.add_argument("--data", type=Path, required=True, help="folder with Fashion-MNIST")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: bench/results beside this file")
    parser.add_argument("--samples", type=int, default=1000, help="a multiple of 100, of each row")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    path, about = given.out / "distilled.json", describe()
    made = {"samples": given.samples, "student": pfdiff.Network(STUDENT).digest}
    found = json.loads(path.read_text()) if path.exists() else {}
    if any(found.get(key) != value for key, value in made.items()):
        found = {**made, "machine": about, "rows": {}}
    pixels, _ = load_fashion(given.data)
    real, _ = reference_features(extractor("fashion"), pixels[..., None])
    distance, rows = FrechetDistance(real.pooled), []
    with tempfile.TemporaryDirectory(prefix="pfdiff-") as folder:
        for cell in cells():
            if cell.key not in found["rows"]:
                drawn = draw(cell, given.samples, Path(folder), given.threads)
                found["rows"][cell.key] = {**vars(cell), "passes": cell.passes, **judged(drawn, distance)}
                with replacing(path) as part:
                    part.write_text(json.dumps(found, indent=1) + "\n")
                print(cell.key, found["rows"][cell.key], flush=True)
            if cell.solver == "consistency" or (cell.solver == "deis:order=3" and cell.nfe in (4, 8)):
                shown = draw(cell, BATCH, Path(folder), given.threads)[:SHOWN]
                guided = "" if cell.guidance == 1 else f", guided {cell.guidance:g}"
                rows.append(Row(f"{cell.network}{guided}\n{cell.solver}, {cell.nfe}", shown))
    page = sheet(rows, headings=CLASSES, title="The distilled network and its teacher", note="One seed a column.")
    write_picture(given.out / "distilled.png", page)


if __name__ == "__main__":
    main()
