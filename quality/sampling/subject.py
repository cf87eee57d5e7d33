"""Any network as a function of a batch, for the search: x, time and rows in, prediction out, nothing else known.

A module is run by PyTorch as it is, so that nothing is exported; an ONNX file and an engine directory by the backend
that would run the engine, on a GPU where there is one. Each seed has its own conditions: what the caller gives, else
labels in turn, else defaults.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch

from ...engine.artifact import MANIFEST, read_artifact
from ...engine.backends.abstract import Backend, Buffers, NetworkFiles
from ...engine.backends.choose import open_best
from ...engine.backends.registry import check_backend
from ...engine.cache import content_key
from ...engine.compiler.basis import PRECONDITIONED
from ...engine.compiler.schedule import parse_schedule
from ...engine.contract.contract import Contract
from ...engine.contract.seed_conditions import conditions_of
from ...engine.errors import BackendError
from ...export.network import Network
from ...export.sources.from_module import ModuleSource
from ...export.sources.module_call import Normalised
from .pool import Floats, Rows

if TYPE_CHECKING:
    from torch import nn

LATENTS = (-math.inf, math.inf)
TRIED = 4  # samples of a trial
LARGEST_BATCH = 32  # samples in one call: beyond it a CPU gains nothing
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@final
@dataclass(frozen=True, eq=False)
class Subject:
    """What is searched for: its contract, a digest of everything that determines its answers, and how to open it.

    sample_range: where samples are clamped before they are judged; latents are not.
    """

    contract: Contract
    digest: str
    network: Network | None
    engine: Path | None
    sample_range: tuple[float, float]

    @staticmethod
    def of(network: Network | nn.Module | str | Path) -> Subject:
        """From a Network, what Network takes alone, or an engine directory. Raises InputError, EngineFileError."""
        if isinstance(network, (str, Path)) and (Path(network) / MANIFEST).is_file():
            artifact = read_artifact(network)
            digest = content_key(
                artifact.contract.to_dict(), {name: one.sha256 for name, one in artifact.files.items()}
            )
            clamped = LATENTS if artifact.decoder else artifact.contract.data_range
            return Subject(artifact.contract, digest, None, artifact.path, clamped)
        opened = network if isinstance(network, Network) else Network(network)
        if opened.decoder:
            return Subject(opened.contract, content_key(opened.digest, "latents"), opened, None, LATENTS)
        return Subject(opened.contract, opened.digest, opened, None, opened.contract.data_range)

    @contextlib.contextmanager
    def opened(self, backend: str = "auto", threads: int | None = None) -> Iterator[Backend]:
        """Its backend, closed at the end. Raises InputError, BackendError."""
        check_backend(backend)
        module = self.module()
        backend = "torch" if backend == "auto" and module else backend
        with tempfile.TemporaryDirectory(prefix="pfdiff-") as folder:
            path = Path(folder if self.engine is None else self.engine) / "network.onnx"
            if self.network is not None and backend != "torch":
                self.network.write(path.parent, self.contract.precision)
            elif module is None and backend == "torch":
                raise BackendError("backend 'torch' needs an nn.Module, this network is ONNX; use backend onnxruntime")
            running, _ = open_best(NetworkFiles(path, self.contract, module), None, backend, threads)
            try:
                yield running
            finally:
                running.close()

    def module(self) -> nn.Module | None:
        """forward(x, t, *conditions) -> prediction, where the subject is a module; else None."""
        source = self.network._source if self.network else None
        return Normalised(source.whole(), source.call) if isinstance(source, ModuleSource) else None


def speed_of(
    subject: Subject, conditions: Mapping[str, Any] | None, backend: str = "auto", threads: int | None = None
) -> float:
    """Evaluations a second of a batch of TRIED samples, the quicker of two tries. Raises InputError, BackendError."""
    contract = subject.contract
    count = contract.fixed_batch or TRIED
    time_fed = float(parse_schedule(contract.schedule).last)
    if contract.prediction in PRECONDITIONED:
        time_fed = math.log(time_fed) / 4
    with subject.opened(backend, threads) as running:
        box = BlackBox(running, contract, conditions_of(contract, conditions, range(count)))
        x, rows, took = np.zeros((count, *contract.shape), np.float32), np.arange(count), math.inf
        for _ in range(3):  # the first one warms up
            began = time.perf_counter()
            box(x, time_fed, rows)
            took = min(took, time.perf_counter() - began)
    return count / took


@final
class BlackBox:
    """The network on a pool of seeds; `conditions` are arrays [n, *shape] in the order of the contract."""

    def __init__(self, backend: Backend, contract: Contract, conditions: Sequence[np.ndarray]) -> None:
        self._backend = backend
        self._contract = contract
        self._conditions = [torch.from_numpy(np.ascontiguousarray(values)) for values in conditions]
        self._bound: dict[int, tuple[Buffers, Any]] = {}

    def __call__(self, x: Floats, time: float, rows: Rows) -> Floats:
        """out float32 [m, *shape] for x float32 [m, *shape] of the samples `rows`. Raises BackendError."""
        fixed = self._contract.fixed_batch
        result = np.empty_like(x)
        most = fixed or LARGEST_BATCH
        for first in range(0, len(x), most):
            part = slice(first, first + most)
            result[part] = self._batch(x[part], time, rows[part], fixed)
        return result

    def _batch(self, x: Floats, time: float, rows: Rows, fixed: int | None) -> Floats:
        count = len(x)
        buffers, evaluate = self._binding(fixed or count)
        buffers.x[:count].copy_(torch.from_numpy(x))
        assert buffers.t is not None
        buffers.t.fill_(self._contract.feed_times([time])[0].item())
        for buffer, values in zip(buffers.conditions, self._conditions, strict=True):
            buffer[:count].copy_(values[torch.from_numpy(rows)])
        return evaluate()[:count].float().cpu().numpy().copy()

    def _binding(self, size: int) -> tuple[Buffers, Any]:
        if size not in self._bound:
            contract, device, dtype = self._contract, self._backend.device, self._backend.dtype
            kinds = [getattr(torch, one.dtype) for one in contract.conditions]
            buffers = Buffers(
                x=torch.zeros((size, *contract.shape), dtype=dtype, device=device),
                t=torch.zeros(
                    (size,) if contract.time_rank else (), dtype=getattr(torch, contract.time_dtype), device=device
                ),
                conditions=tuple(
                    torch.zeros((size, *one.shape), dtype=kind, device=device)
                    for one, kind in zip(contract.conditions, kinds, strict=True)
                ),
                out=torch.zeros((size, *contract.shape), dtype=dtype, device=device),
            )
            self._bound[size] = buffers, self._backend.bind([buffers])[0]
        return self._bound[size]
