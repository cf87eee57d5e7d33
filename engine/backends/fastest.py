"""The fastest backend on this CPU, found by trying: which wins depends on network, machine and versions.

Every installed one that computes in the engine's own precision evaluates the network as a sample does: some times in a
row, after its threads have gone to sleep. Waking them costs one library more than another, and of a small network's few
evaluations that is a part. All take turns, so that a machine that drifts slows them alike. It costs a load of each and
about a second; nothing is remembered.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray

from ..contract import Contract
from ..errors import BackendError, PfdiffError
from ..loop import TORCH_DTYPES, from_numpy, lasting
from . import BACKENDS, check_precision, open_backend
from .abstract import Backend, Buffers, Evaluate, Source

EVALUATIONS = 5  # in a row: a few-step sample's
SECONDS = 0.5  # for all rounds together
ROUNDS = (2, 20)  # fewest and most
PAUSE_S = 0.003  # lets the threads of every library, which spin for a while after their work, go to sleep


def open_fastest(source: Source, threads: int | None) -> tuple[Backend, str]:
    """The loaded backend whose evaluations take the least time, and all the times in one line.

    The batch is the engine's smallest. Raises BackendError when no backend runs the network, InputError on bad threads.
    """
    contract = source.contract
    assert isinstance(contract, Contract)  # a decoder is not timed
    batch = source.artifact.batch[0] if source.artifact else contract.fixed_batch or 1
    opened: dict[str, Backend] = {}
    buffers: list[Buffers] = []  # they live as long as what is bound to them
    evaluations: list[Evaluate] = []
    skipped: list[str] = []
    for name in BACKENDS:
        if name == "torch" and source.module is None:
            continue
        try:
            check_precision(name, contract.precision)
            backend = open_backend(name, source, threads)
            with lasting():
                buffers.append(_buffers(backend, contract, batch))
            evaluations += backend.bind(buffers[-1:])
        except PfdiffError as error:
            skipped.append(f"{name}: {error}")
        else:
            opened[name] = backend
    if not opened:
        raise BackendError(f"no backend runs this engine on the CPU: {'; '.join(skipped)}")
    times = _least_ms(evaluations)
    best = list(opened)[int(times.argmin())]
    for name, backend in opened.items():
        if name != best:
            backend.close()
    figures = ", ".join(f"{name} {ms:.3g} ms" for name, ms in zip(opened, times, strict=True))
    return opened[best], "; ".join([f"the fastest here at batch {batch}: {figures}", *skipped])


def _least_ms(evaluations: list[Evaluate]) -> NDArray[np.float64]:
    """Milliseconds of an evaluation, the mean of EVALUATIONS in a row after a pause, the least of the rounds."""
    for evaluate in evaluations:
        evaluate()  # the first allocates
    times: list[list[float]] = []
    start = time.perf_counter()
    while len(times) < ROUNDS[0] or (len(times) < ROUNDS[1] and time.perf_counter() < start + SECONDS):
        times.append([])
        for evaluate in evaluations:
            time.sleep(PAUSE_S)
            before = time.perf_counter()
            for _ in range(EVALUATIONS):
                evaluate()
            times[-1].append(1e3 * (time.perf_counter() - before) / EVALUATIONS)
    return np.min(times, axis=0)


def _buffers(backend: Backend, contract: Contract, batch: int) -> Buffers:
    x, out = (torch.zeros((batch, *contract.shape), dtype=backend.dtype) for _ in range(2))
    t = torch.zeros((batch,) if contract.time_rank else (), dtype=TORCH_DTYPES[contract.time_dtype])
    given = [
        one.values(np.full(one.shape, one.low or 0) if one.default is None else None, batch)
        for one in contract.conditions
    ]
    conditions = tuple(
        from_numpy(values).to(TORCH_DTYPES[one.dtype]) for one, values in zip(contract.conditions, given, strict=True)
    )
    return Buffers(x, t, conditions, out)
