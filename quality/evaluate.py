"""`evaluate`: how far an engine's samples, or those in files, are from real pictures.

    report = pfdiff.evaluate("fashion.engine", "fashion_mnist_train_uint8.npz", nfe=8, count=10_000, features="fashion")
    report.distance, report.spatial_distance, report.precision, report.recall, report.kernel_distance

A distance depends on the network that makes the features and on the number of samples: both stand in the report, with
the seeds and the solver. It is called FID only on Inception's features. What the real pictures gave is kept in the
cache folder under the hash of pictures, extractor and version.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from ..engine.api import Engine, load
from ..engine.artifact import MANIFEST
from ..engine.bulk.manifest import MANIFEST as RUN
from ..engine.contract.seed_conditions import conditions_of
from ..engine.errors import InputError
from ..engine.progress import Stages
from .distances.features import FID_DIGEST, Extractor, Features, extractor, joined
from .distances.metrics import FrechetDistance, kernel_distance, precision_recall, thinned
from .distances.real_pictures import counting, reference_features
from .pictures.read import pictures_of

if TYPE_CHECKING:
    from torch import nn

COUNT = 10_000


@final
@dataclass(frozen=True)
class Evaluation:
    """Distances of `samples` samples to `real` real pictures, on the features named `extractor`.

    distance: Frechet. spatial_distance: likewise on spatial features, None when the extractor has none.
    precision, recall: of `compared` pictures of each kind, drawn from the larger set. kernel_distance, kernel_spread:
    mean and standard deviation over subsets. drawn: where the samples are from.
    """

    extractor: str
    extractor_digest: str
    samples: int
    real: int
    compared: int
    distance: float
    spatial_distance: float | None
    precision: float
    recall: float
    kernel_distance: float
    kernel_spread: float
    drawn: Mapping[str, Any]
    reference: str
    reference_digest: str

    @property
    def names(self) -> tuple[str, str, str]:
        """What distance, spatial_distance and kernel_distance are called: FID, sFID, KID on Inception's features.

        What decides is the extractor's digest: its name is the user's.
        """
        return ("FID", "sFID", "KID") if self.extractor_digest == FID_DIGEST else ("FD", "sFD", "KD")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {"names": self.names, **asdict(self)}


def evaluate(
    samples: Engine | str | os.PathLike[str] | NDArray[Any],
    reference: str | os.PathLike[str] | NDArray[Any],
    *,
    features: str | nn.Module,
    nfe: int | None = None,
    count: int | None = None,
    first: int = 0,
    conditions: Mapping[str, Any] | None = None,
    scale: tuple[float, float] = (-1.0, 1.0),
    device: str = "auto",
    backend: str = "auto",
    threads: int | None = None,
    progress: Stages | None = None,
) -> Evaluation:
    """Compare samples with real pictures.

    samples: an Engine or an engine directory, of which the seeds first .. first + count - 1 are drawn with `nfe`
    evaluations (may be left out when there is one program; count: 10,000); or files or an array, as `read_pictures`
    takes them, all of them; of a folder that `generate` wrote the report names solver and seeds. reference: real
    pictures, likewise.
    features: as `extractor` takes them, with `scale` and `device`. conditions: by name, one value or several that the
    seeds take in turn; by default each label in turn. backend, threads: as in `pfdiff.load`.
    Raises InputError, BackendError, EngineFileError.
    """
    tell = progress or (lambda stage, done, expected: None)
    network = extractor(features, scale=scale, device=device)
    of_engine = isinstance(samples, Engine) or (
        isinstance(samples, (str, os.PathLike)) and (Path(samples) / MANIFEST).is_file()
    )
    if not of_engine and any(value is not None for value in (nfe, count, conditions)):
        raise InputError("nfe, count and conditions are of an engine, and the samples are pictures; leave them out")
    count = COUNT if count is None else count
    real_pixels, real_name = pictures_of(reference)
    generated = {} if of_engine or isinstance(samples, (Engine, np.ndarray)) else generated_by(samples)
    pictures = None if of_engine else pictures_of(samples)
    tell("features of the real pictures", 0, len(real_pixels))
    real, digest = reference_features(network, real_pixels, tell)
    if pictures is not None:
        drawn, made = (
            {"files": pictures[1], **generated},
            network(pictures[0], counting(tell, "samples", len(pictures[0]))),
        )
    elif isinstance(samples, Engine):
        drawn, made = draw(samples, network, nfe, first, count, conditions, tell)
    else:
        with load(samples, device, backend, threads=threads) as engine:  # pyright: ignore[reportArgumentType]  # a path
            drawn, made = draw(engine, network, nfe, first, count, conditions, tell)
    tell("distances", 0, 0)
    return compare_features(network, made, real, drawn=drawn, reference=real_name, reference_digest=digest)


def compare_features(
    network: Extractor,
    made: Features,
    real: Features,
    *,
    drawn: Mapping[str, Any],
    reference: str,
    reference_digest: str,
) -> Evaluation:
    """The report on two sets of features. Raises InputError on too few samples."""
    compared = min(len(made), len(real))
    precision, recall = precision_recall(thinned(real.pooled, compared), thinned(made.pooled, compared))
    mean, spread = kernel_distance(real.pooled, made.pooled)
    return Evaluation(
        extractor=network.name,
        extractor_digest=network.digest,
        samples=len(made),
        real=len(real),
        compared=compared,
        distance=FrechetDistance(real.pooled)(made.pooled),
        spatial_distance=spatial_distance(real, made),
        precision=precision,
        recall=recall,
        kernel_distance=mean,
        kernel_spread=spread,
        drawn=drawn,
        reference=reference,
        reference_digest=reference_digest,
    )


def spatial_distance(real: Features, made: Features) -> float | None:
    """sFD, None when the extractor has no maps."""
    if real.spatial is None or made.spatial is None:
        return None
    return FrechetDistance(real.spatial)(made.spatial)


def draw(
    engine: Engine,
    network: Extractor,
    nfe: int | None,
    first: int,
    count: int,
    conditions: Mapping[str, Any] | None,
    tell: Stages,
) -> tuple[dict[str, Any], Features]:
    """(what was drawn, its features): pixels of the seeds first .. first + count - 1, batch by batch."""
    for name, value, least in (("count", count, 2), ("first", first, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name}={value!r}, expected an integer of at least {least}")
    seeds = range(first, first + count)
    values = conditions_of(engine.contract, conditions, seeds)
    names = [one.name for one in engine.contract.conditions]
    parts: list[Features] = []
    for start in range(0, count, max(engine.batch)):
        part = slice(start, start + max(engine.batch))
        given = {name: value[part] for name, value in zip(names, values, strict=True)}
        parts.append(network(engine.images(seeds=seeds[part], nfe=nfe, **given).cpu().numpy()))
        tell("samples", min(part.stop, count), count)
    program = engine.programs[nfe or next(iter(engine.programs))]
    drawn = {
        "engine": engine.path.name,
        "network": engine.contract.name,
        "solver": program.solver,
        "basis": program.basis,
        "times": [float(t) for t in program.times],
        "nfe": program.nfe,
        "program_digest": program.digest,
        "seeds": f"{first}-{first + count - 1}",
        "conditions": {name: _described(value) for name, value in zip(names, values, strict=True)},
        "backend": engine.description,
    }
    return drawn, joined(parts)


def generated_by(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What `generate` says of the samples in a folder, nothing when it is not from there.

    Raises InputError when they are not all there yet.
    """
    try:
        content = json.loads((Path(folder) / RUN).read_text(encoding="utf-8"))
        recipe, finished, complete = content["recipe"], content["finished"], content["complete"]
        first, count = recipe["first"], recipe["count"]
        drawn = {"network": recipe["network"], "nfe": recipe["nfe"], "program_digest": recipe["program"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    if not complete:
        raise InputError(
            f"samples '{folder}': {finished} of {count} are generated; run the same generate again, then evaluate"
        )
    solver = {"solver": content["solver"]} if "solver" in content else {}  # older runs do not say
    return {**drawn, **solver, "seeds": f"{first}-{first + count - 1}", "conditions": recipe.get("conditions", {})}


def _described(values: NDArray[Any]) -> Any:
    """How often each value is taken, when these are single numbers and not many; else the shape."""
    held, counts = np.unique(values, return_counts=True) if values.ndim == 1 else (values, values)
    if values.ndim != 1 or len(held) > 100:
        return {"shape": list(values.shape)}
    return {str(value): int(times) for value, times in zip(held.tolist(), counts.tolist(), strict=True)}
