"""What the suite measures: engines of its own, or one that a user names, each on the backends that run it here.

fashion   the shipped network, 2.5 M parameters, 28x28x1            cifar   35.7 M parameters, 32x32x3, see `networks`
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...engine.api import Engine, load
from ...engine.artifact import read_artifact
from ...engine.backends.choose import check_runnable
from ...engine.backends.registry import NAMES, is_installed
from ...engine.compiler.program import Program
from ...engine.contract.contract import Contract
from ...engine.device import why_not_cuda
from ...engine.errors import PfdiffError
from ...engine.runtime.noise import noise
from ...export.build import build
from ...export.network import Network
from .gpu_engines import module_of

OWN = ("fashion", "cifar")
SETTINGS: dict[str, Any] = {"solver": "pfdiff:k=2,l=1", "grid": "uniform", "basis": "eps"}
NFE = {"fashion": (5, 8), "cifar": (4,)}
BESIDE_PEERS = {"fashion": "onnxruntime", "cifar": "openvino"}  # the faster on a CPU: small nodes, large convolutions
BATCH = {"fashion": (1, 8), "cifar": (1,)}
PRECISIONS = {"cpu": {"fashion": ("fp32",), "cifar": ("fp32", "bf16")}, "cuda": dict.fromkeys(OWN, ("fp32", "fp16"))}


def device_of() -> str:
    """Where the suite measures: a GPU that can be used, else the CPU."""
    return "cpu" if why_not_cuda() else "cuda"


@final
@dataclass(frozen=True)
class Case:
    """One engine on one backend: engine is a name of `OWN` or the path of a user's; nfe and batch are among its own."""

    engine: str
    precision: str
    backend: str
    nfe: int
    batch: int

    def __str__(self) -> str:
        name = Path(self.engine).name
        return f"{name}-{self.precision}-{self.backend}-nfe{self.nfe}-batch{self.batch}"


def cases(path: str | None) -> Iterator[Case]:
    """Every case of the user's engine at `path`, or of the suite's own."""
    if path is not None:
        artifact = read_artifact(path)
        for backend in runnable(artifact.precision, own=False):
            for nfe in sorted(artifact.programs):
                for batch in artifact.batch:
                    yield Case(path, artifact.precision, backend, nfe, batch)
        return
    for engine, precisions in PRECISIONS[device_of()].items():
        for precision in precisions:
            for backend in runnable(precision, own=True):
                last = NFE[engine][-1]
                for nfe in NFE[engine]:
                    for batch in BATCH[engine] if nfe == last else BATCH[engine][:1]:
                        yield Case(engine, precision, backend, nfe, batch)


def runnable(precision: str, *, own: bool) -> list[str]:
    """The backends that run an engine directory of this precision here; torch only own ones, whose module there is.

    On a CPU torch is left to the peers: there it runs what cannot be exported, not engine directories.
    """
    device, found = device_of(), []
    for name in NAMES:
        if name == "torch" and not (own and device == "cuda"):
            continue
        try:
            check_runnable(name, precision, "given", torch.device(device))
        except PfdiffError:
            continue
        found.append(name)
    return found


@final
class Engines:
    """Engine directories of the suite, built when first asked for, and loaded engines, closed at the end."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.threads: int | None = threads
        self._folder = folder
        self._open: dict[tuple[str, str, str], Engine] = {}

    def __enter__(self) -> Engines:
        return self

    def __exit__(self, *exception: object) -> None:
        for engine in self._open.values():
            engine.close()

    def path(self, name: str, precision: str) -> Path:
        """The directory of an own network, or a user's engine itself."""
        if name not in OWN:
            return Path(name)
        path = self._folder / f"{name}_{precision}.engine"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            build(
                source_of(name),
                NFE[name],
                **SETTINGS,
                batch=BATCH[name],
                precision=precision,
                device=device_of(),
                out=path,
            ).close()
        return path

    def open(self, case: Case) -> Engine:
        """The engine of a case, loaded once."""
        key = case.engine, case.precision, case.backend
        if key not in self._open:
            self._open[key] = self.load(case, module_for(case.engine, case.backend))
        return self._open[key]

    def load(self, case: Case, module: nn.Module | None) -> Engine:
        """The engine of a case, loaded anew for the caller to close; module: of `module_for`."""
        path = self.path(case.engine, case.precision)
        return load(path, device_of(), case.backend, threads=self.threads, module=module)

    def contract(self, name: str) -> Contract:
        """What the float32 network of an engine takes and predicts."""
        return read_artifact(self.path(name, "fp32")).contract

    def with_program(self, name: str, program: Program, backend: str, precision: str = "fp32") -> Engine:
        """An engine of an own network on a given backend, one program and batch 1, for the caller to close."""
        artifact = replace(read_artifact(self.path(name, precision)), programs={program.nfe: program}, batch=(1,))
        module = module_for(name, backend)
        return Engine.open(artifact, device=device_of(), backend=backend, threads=self.threads, module=module)


def backend_of(name: str) -> str:
    """Ours beside the peers of an own network: on a CPU always the same, so that ratios of two runs can be compared."""
    if device_of() != "cpu":
        return "auto"
    return BESIDE_PEERS[name] if is_installed(BESIDE_PEERS[name]) else "onnxruntime"


def module_for(name: str, backend: str) -> nn.Module | None:
    """What a backend needs of an own network beside its directory: the module for torch, and for auto on a GPU."""
    asked = backend == "torch" or (backend == "auto" and device_of() == "cuda")
    return module_of(name, "cpu") if asked and name in OWN else None


def source_of(name: str) -> Network:
    """The network behind an own engine: the shipped one, or the CIFAR-size U-Net with random weights of seed 0."""
    if name == "fashion":
        return Network("fashion")
    return Network(module_of(name, "cpu"), name=name, shape=(3, 32, 32), schedule="linear:1000", prediction="eps")


def update_bytes(engine: Engine, nfe: int, batch: int) -> int:
    """Bytes that the updates of one call read (states, network output) and write (states)."""
    program = engine.programs[nfe]
    return nfe * 4 * (2 * program.buffers + 1) * batch * math.prod(engine.contract.shape)


def network_bytes(engine: Engine, batch: int) -> int:
    """Bytes that one evaluation reads (weights, a sample) and writes (a prediction); float32 samples on a CPU."""
    weights = sum(path.stat().st_size for path in engine.path.glob("network.onnx*"))
    return weights + 8 * batch * math.prod(engine.contract.shape)


def conditions_of(engine: Engine, batch: int) -> dict[str, NDArray[Any]]:
    """Values [batch, ..] by name: the conditions' defaults, or the least that they may be."""
    given = engine.contract.stand_ins
    return {one.name: one.values(given.get(one.name), batch) for one in engine.contract.conditions}


def feed(engine: Engine, nfe: int, batch: int) -> dict[str, NDArray[Any]]:
    """Input arrays of the network file by name: seeds' noise, the program's first time, conditions."""
    contract = engine.contract
    times = contract.feed_times(engine.programs[nfe].network_times)[:1]
    x, t = noise(range(batch), contract.shape).numpy(), np.repeat(times, batch) if contract.time_rank else times[0]
    return {contract.input: x, contract.time: t, **conditions_of(engine, batch)}
