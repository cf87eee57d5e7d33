"""Engines of the network of the CPU's tests on a GPU, and the batches that they hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pfdiff.engine.api import Engine
from pfdiff.engine.artifact import Artifact
from pfdiff.engine.backends.abstract import CudaOptions
from pfdiff.engine.runtime.cuda.batch import CudaBatch
from pfdiff.engine.runtime.cuda.loop import CudaLoop

from ..small.engine import CONTRACT, Small, program


def small_engine(module: Any = None, *, batch: tuple[int, ...] = (1, 8), **settings: Any) -> Engine:
    """An engine of the network of the CPU's tests; `graph` and `precision` as settings, the rest of the program."""
    options = CudaOptions(graph=settings.pop("graph", True), compile=settings.pop("compile", False))
    contract = replace(CONTRACT, precision=settings.pop("precision", "fp32"))
    evaluations = (6,) if "solver" in settings else (4, 6)  # some solvers take multiples of 2 or 3
    programs = {nfe: program(nfe, contract, **settings) for nfe in evaluations}
    artifact = Artifact(Path("small"), contract, batch, contract.precision, programs)
    module = Small() if module is None else module
    return Engine.open(artifact, device="cuda", backend="torch", module=module, options=options)


def samplers(engine: Engine) -> list[CudaBatch]:
    loop = engine._session._loop
    assert isinstance(loop, CudaLoop)
    return list(loop._held.values())
