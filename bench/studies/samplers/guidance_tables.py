"""What guidance does to `fashion`: `python -m pfdiff.bench.studies.samplers.guidance_tables`.

Classifier-free guidance of the conditional network at scales 0, 1, 2, 4, and classifier guidance of the unconditional
one at 0, 1, 2. For each scale and NFE the same seeds and classes: the share of samples to which the shipped judge,
which knows nothing of the guide, gives the class that was asked for. bench/results/<machine>/guidance.json holds the
figures; one picture for each kind stands in bench/results/, a class a column, a scale a row.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pfdiff
from pfdiff.bench.studies.samplers.fashion_quality import judge
from pfdiff.export.zoo.fashion import CLASSES
from pfdiff.export.zoo.fashion_classifier import load_classifier
from pfdiff.quality.pictures.sheet import Row, sheet
from pfdiff.quality.pictures.write import write_picture

from ...measuring.machine import RESULTS, describe, folder_name

SETTINGS: dict[str, Any] = {"solver": "pfdiff:k=2,l=1", "grid": "uniform", "basis": "eps"}
BATCH = 50


@dataclass(frozen=True)
class Kind:
    """One kind of guidance: the words it is built with, the input that names the class, its scales, its title."""

    name: str
    guidance: str
    target: str
    scales: tuple[float, ...]
    title: str
    note: str


KINDS = (
    Kind(
        "classifier_free",
        "label",
        "label",
        (0, 1, 2, 4),
        "Classifier-free guidance",
        "Scale 0: the class is not used; 1: the conditional network as it is.",
    ),
    Kind(
        "classifier",
        "classifier=fashion,clip=1",
        "target",
        (0, 1, 2),
        "Classifier guidance of the unconditional network",
        "Scale 0: the unconditional network as it is. The guide and the judge are two classifiers.",
    ),
)


@dataclass(frozen=True)
class Figure:
    """One scale and NFE: class agreement over all samples, and of each class."""

    kind: str
    scale: float
    nfe: int
    class_agreement: float
    class_agreement_each: dict[str, float]


def measure(kind: Kind, nfe: list[int], samples: int) -> Iterator[tuple[Figure, np.ndarray]]:
    """For each scale and NFE the figure and pictures uint8 [10, 28, 28, 1], the first of each class."""
    model, count = load_classifier(), len(CLASSES)
    classes = torch.arange(samples) % count
    network = pfdiff.Network("fashion", guidance=kind.guidance)
    with (
        tempfile.TemporaryDirectory() as folder,
        pfdiff.build(network, nfe, **SETTINGS, batch=[BATCH], out=Path(folder, "fashion.engine")) as engine,
    ):
        for scale in kind.scales:
            for evaluations in nfe:
                asked: dict[str, Any] = {kind.target: classes, "guidance": scale, "nfe": evaluations}
                x = torch.as_tensor(engine.sample(seeds=range(samples), **asked)).clamp(-1, 1)
                answers, _ = judge(model, x)
                right = (answers == classes).double()
                each = {name: round(float(right[classes == one].mean()), 4) for one, name in enumerate(CLASSES)}
                shown = ((x[:count] + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
                yield Figure(kind.name, scale, evaluations, round(float(right.mean()), 4), each), shown


def main(words: list[str] | None = None) -> None:
    about = str(__doc__).splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m pfdiff.bench.studies.samplers.guidance_tables", description=about)
    parser.add_argument("--samples", type=int, default=500, help="a multiple of 10, of each scale")
    parser.add_argument("--nfe", type=int, nargs="+", default=[8, 20], help="ascending; the pictures are of the last")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: bench/results beside this file")
    given = parser.parse_args(words)

    figures: list[Figure] = []
    for kind in KINDS:
        rows: list[Row] = []
        for figure, shown in measure(kind, given.nfe, given.samples):
            print(f"{kind.name} {figure.scale:g}, NFE {figure.nfe}: {figure.class_agreement:.1%}", flush=True)
            figures.append(figure)
            if figure.nfe == given.nfe[-1]:
                rows.append(Row(f"scale {figure.scale:g}\n{figure.class_agreement:.0%} agreement", shown))
        page = sheet(
            rows,
            headings=CLASSES,
            title=kind.title,
            note=f"{kind.note} One seed a column, {SETTINGS['solver']}, {given.nfe[-1]} evaluations.",
        )
        write_picture(given.out / f"guidance_{kind.name}.png", page)
    folder = given.out / folder_name()
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": describe(),
        **SETTINGS,
        "samples": given.samples,
        "seeds": f"0-{given.samples - 1}, class: seed mod 10",
        "judge": "fashion_classifier",
        "figures": [asdict(one) for one in figures],
    }
    (folder / "guidance.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
