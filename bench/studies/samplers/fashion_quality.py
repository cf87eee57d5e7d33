"""Quality of the shipped network: `python -m pfdiff.bench.studies.samplers.fashion_quality --data DIR --out FILE.json`.

2,000 samples, 200 a class, at 50 evaluations: how many the classifier gives the class that was asked for, and the
Frechet distance on its features to the test set. Real pictures go through the same: accuracy on the test set, and the
distance of 2,000 training pictures to the test set, which is what a perfect network would score at this sample size.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ....export.build import build
from ....export.zoo.fashion import CLASSES
from ....export.zoo.fashion_classifier import FashionClassifier, load_classifier
from ....export.zoo.fashion_data import load_fashion
from ....export.zoo.judges import accuracy
from ....quality.distances.metrics import FrechetDistance

SOLVER, GRID, NFE, PER_CLASS = "dpm++:2m", "logsnr", 50, 200


@torch.inference_mode()
def judge(model: FashionClassifier, x: Tensor) -> tuple[Tensor, np.ndarray]:
    """(predicted classes int64 [n], features float32 [n, 128]) of x [n, 1, 28, 28] in [-1, 1]."""
    features = torch.cat([model.features(part) for part in x.split(500)])
    return model.head(features).argmax(1), features.numpy()


def evaluate(data: Path) -> dict:
    """The figures of one run, as written to JSON."""
    model = load_classifier()
    (train_pixels, train_labels), (test_pixels, test_labels) = load_fashion(data), load_fashion(data, "test")
    real = lambda pixels: torch.from_numpy(pixels.copy())[:, None].float() / 127.5 - 1  # noqa: E731  # one formula
    _, test_features = judge(model, real(test_pixels))
    balanced = np.concatenate([np.flatnonzero(train_labels == label)[:PER_CLASS] for label in range(10)])
    _, train_features = judge(model, real(train_pixels[balanced]))

    labels = torch.arange(10).repeat_interleave(PER_CLASS)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "fashion.engine"
        with build("fashion", nfe=NFE, solver=SOLVER, grid=GRID, batch=[100], out=out) as engine:
            x = torch.as_tensor(engine.sample(seeds=range(len(labels)), label=labels)).clamp(-1, 1)
    answers, features = judge(model, x)
    agreement = (answers == labels).view(10, PER_CLASS).double().mean(1)
    to_test_set = FrechetDistance(test_features)
    return {
        "samples": len(labels),
        "seeds": f"0-{len(labels) - 1}",
        "solver": SOLVER,
        "grid": GRID,
        "nfe": NFE,
        "class_agreement": round(float(agreement.mean()), 4),
        "class_agreement_each": dict(zip(CLASSES, agreement.round(decimals=4).tolist(), strict=True)),
        "classifier_test_accuracy": round(accuracy(model, test_pixels, test_labels), 4),
        "frechet_distance": round(to_test_set(features), 4),
        "frechet_distance_real_to_real": round(to_test_set(train_features), 4),
        "features": "fashion_classifier, 128 mean activations; not FID",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure the quality of the shipped fashion network.")
    parser.add_argument("--data", type=Path, required=True, help="folder with Fashion-MNIST")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    figures = evaluate(options.data)
    options.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
