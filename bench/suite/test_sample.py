"""A whole sample, for each NFE, batch, backend and precision, beside its bare evaluations and its updates.

overhead = whole call / its N bare evaluations; what is left of the call beside evaluations and updates is the rest:
noise, Python, launches and gaps. On a CUDA device the L2 cache is never flushed: a call finds it as the last one left
it, as it does in use, and its bare evaluations likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pfdiff.bench.measuring.cases import Case, Engines, network_bytes, update_bytes
from pfdiff.bench.measuring.measure import Measure
from pfdiff.bench.measuring.ratios import OVERHEAD, blocks


def select(cases: Sequence[Case]) -> Sequence[Case]:
    return cases


def test_sample(measure: Measure, engines: Engines, case: Case) -> None:
    engine = engines.open(case)
    parts: Any = engine.parts(case.nfe, case.batch)
    assert bool(parts.whole().isfinite().all())  # what is timed must be a sample
    whole, beside = measure(parts.whole, {"network": parts.network, "updates": parts.updates})
    network, updates = (float(np.median(beside[name] / whole)) for name in ("network", "updates"))
    measure.record(
        whole,
        case,
        engine,
        floor_ms=float(np.median(beside["network"])),
        bytes=case.nfe * network_bytes(engine, case.batch) + update_bytes(engine, case.nfe, case.batch),
        shares={"network": network, "updates": updates, "rest": 1 - network - updates},
        ratios={OVERHEAD: blocks(whole, beside["network"])},
    )
