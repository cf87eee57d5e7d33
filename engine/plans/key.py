"""What a TensorRT plan is valid for: everything that decides what is built. Another key is another file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, final

from ..artifact import NETWORK, Artifact, network_digest
from ..errors import BackendError, InputError

FLAVOURS = {"tensorrt": "pip install tensorrt", "tensorrt_rtx": "pip install 'pfdiff[rtx]'"}
PLAN_DTYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int64": "INT64"}


@final
@dataclass(frozen=True)
class PlanKey:
    """What a plan was built for. `capability`: such as sm89; `gpu`: the GPU's name where plans depend on it, else "".

    `file`: network.onnx, or decoder.onnx of a latent model; `network`: a digest of its content.
    """

    flavour: str
    version: str
    capability: str
    gpu: str
    network: str
    precision: str
    batch: tuple[int, ...]
    tf32: bool = False
    file: str = NETWORK

    @property
    def _part(self) -> list[str]:
        """What is not the network, in a word of its plan's name."""
        return [] if self.file == NETWORK else [self.file.rpartition("/")[2].removesuffix(".onnx")]

    @property
    def name(self) -> str:
        """File name without suffix: readable words, then a hash that tells keys apart."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        words = [self.flavour, self.version, self.capability, self.precision, *self._part]
        return "-".join([*words, digest[:16]])


def load_flavour(flavour: str) -> Any:
    """The TensorRT module. Raises InputError for an unknown name, BackendError when it is not installed."""
    if flavour not in FLAVOURS:
        raise InputError(f"unknown TensorRT flavour {flavour!r}; known: {', '.join(FLAVOURS)}")
    try:
        return import_module(flavour)
    except ImportError as error:
        raise BackendError(f"backend '{flavour}' is not installed ({error}); {FLAVOURS[flavour]}") from None


def plan_key(
    artifact: Artifact, flavour: str, capability: str, gpu: str = "", *, tf32: bool = False, file: str = NETWORK
) -> PlanKey:
    """The key of the plan that this artifact's `file` needs on a GPU of `capability` (sm89) and name `gpu`."""
    return PlanKey(
        flavour=flavour,
        version=str(load_flavour(flavour).__version__),
        capability=capability,
        gpu=gpu if flavour == "tensorrt" else "",
        network=network_digest(artifact, file),
        precision=artifact.contracts[file].precision,
        batch=artifact.batch,
        tf32=tf32,
        file=file,
    )


def parse_targets(text: str | Iterable[str]) -> tuple[str, ...]:
    """Compute capabilities, "sm86,sm89" or a list, lower case. Raises InputError."""
    parts = [part.strip().lower() for part in (text.split(",") if isinstance(text, str) else text)]
    for part in parts:
        if not (part.startswith("sm") and part[2:].isdigit() and len(part) in (4, 5)):
            raise InputError(f"target {part!r} is no compute capability; expected for example sm86,sm89,sm120")
    return tuple(dict.fromkeys(parts))


def check_target(flavour: str, capability: str) -> None:
    """Raises BackendError when TensorRT-RTX is not installed or does not build for `capability` (sm89)."""
    trt = load_flavour(flavour)
    known = sorted((name.lower() for name in trt.ComputeCapability.__members__ if name.startswith("SM")), key=_number)
    if capability not in known:
        raise BackendError(
            f"{flavour} {trt.__version__} has no {capability}; it builds for {', '.join(known)}; "
            "use backend tensorrt or torch"
        )


def _number(capability: str) -> int:
    return int(capability.removeprefix("sm"))
