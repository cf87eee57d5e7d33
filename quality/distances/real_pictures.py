"""Real pictures that samples are compared with: their features, kept in the cache folder.

What is kept has the hash of pictures, extractor and version for a name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ...engine.cache import ArrayStore, cache_folder, content_key
from ...engine.progress import Stages
from ..pictures.pixels import Pixels
from ..pictures.read import pictures_of
from .features import Extractor, Features, extractor
from .metrics import FrechetDistance

VERSION = 1  # of what is cached: raised when features of the same pictures change
PROBED = 2  # pictures whose features say whether the cached ones are of this extractor


@final
@dataclass(frozen=True, eq=False)
class RealPictures:
    """What samples are measured against: `width` features of each picture."""

    name: str
    extractor: Extractor
    distance: FrechetDistance
    width: int

    @staticmethod
    def of(
        pictures: str | os.PathLike[str] | NDArray[Any],
        features: str | nn.Module,
        scale: tuple[float, float] = (-1.0, 1.0),
    ) -> RealPictures:
        """From files or an array, and what `extractor` takes. Raises InputError, BackendError."""
        network = extractor(features, scale=scale)
        pixels, name = pictures_of(pictures)
        real, _ = reference_features(network, pixels)
        return RealPictures(name, network, FrechetDistance(real.pooled), real.pooled.shape[1])

    def __str__(self) -> str:
        kind = "FID" if self.extractor.fid else "FD"
        return f"{kind} to {self.name} on features {self.extractor.name}"


def reference_features(network: Extractor, pixels: Pixels, tell: Stages | None = None) -> tuple[Features, str]:
    """(features of real pictures, SHA-256 of these), from the cache when they were had before. Raises InputError.

    What is cached counts only if it agrees with features of the first pictures made now: a digest may
    miss something that a module reaches.
    """
    digest = content_key(pixels)
    store = ArrayStore(cache_folder() / "features")
    probe = _parts(network(pixels[:PROBED]))
    keys = {kind: content_key(digest, network.digest, VERSION, kind) for kind in probe}
    held = {kind: store.get(keys[kind], (len(pixels), part.shape[1])) for kind, part in probe.items()}
    found = {kind: part for kind, part in held.items() if part is not None and _agree(part, probe[kind])}
    if found.keys() == probe.keys():
        return Features(found["pooled"], found.get("spatial")), digest
    features = network(pixels, counting(tell, "features of the real pictures", len(pixels)) if tell else None)
    for kind, part in _parts(features).items():
        store.put(keys[kind], part)
    return features, digest


def counting(tell: Stages, stage: str, expected: int) -> Callable[[int], None]:
    return lambda done: tell(stage, done, expected)


def _parts(features: Features) -> dict[str, NDArray[np.float32]]:
    parts = {"pooled": features.pooled, "spatial": features.spatial}
    return {kind: part for kind, part in parts.items() if part is not None}


def _agree(held: NDArray[np.float32], probe: NDArray[np.float32]) -> bool:
    """Whether cached features begin with those of the probe, as far as another batch or device gives the same."""
    return np.allclose(held[: len(probe)], probe, rtol=1e-2, atol=1e-3)
