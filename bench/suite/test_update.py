"""The updates alone, beside copies of as many bytes.

floor_ms is one such copy by PyTorch, its call included: of few bytes, where the call takes longer than they do, an
update can be faster.

On a CUDA device the N updates are one graph and the N copies another, started alike. Both find their data in the L2
cache, which in a sample only a network smaller than the cache leaves there: from memory the same kernel is timed by
`test_gpu_step.py`, on sets of buffers that no cache holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pfdiff.bench.measuring.cases import Case, Engines, update_bytes
from pfdiff.bench.measuring.measure import Measure, repeated
from pfdiff.bench.measuring.ratios import blocks


def select(cases: Sequence[Case]) -> list[Case]:
    """One case for each engine and batch: the first backend's, since it has no part in it."""
    first = [(one.backend, one.precision) for one in cases[:1]]
    return list({(one.engine, one.batch): one for one in cases if (one.backend, one.precision) in first}.values())


def test_update(measure: Measure, engines: Engines, case: Case) -> None:
    engine = engines.open(case)
    parts = engine.parts(case.nfe, case.batch)
    updates, count = repeated(parts.updates)
    moved = update_bytes(engine, case.nfe, case.batch)
    source, target = torch.rand(2, moved // (8 * case.nfe), device=engine.device)  # a copy reads and writes

    def copy() -> None:
        for _ in range(case.nfe):
            target.copy_(source)

    once = parts.wrap(copy)

    def copies() -> None:
        for _ in range(count):
            once()

    times, beside = measure(updates, {"copies": copies}, weight=0.5)
    measure.record(
        times / (count * case.nfe),
        case,
        engine,
        floor_ms=float(np.median(beside["copies"])) / (count * case.nfe),
        bytes=moved // case.nfe,
        ratios={"update / copy of its bytes": blocks(times, beside["copies"])},
    )
