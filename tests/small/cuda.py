"""What every captured engine promises of a call on a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from pfdiff.bench.measuring.profiling import allocations, graph_launches, runtime_calls, waits


def calls_of_one_launch(call: Callable[[], Any]) -> Counter[str]:
    """What the fourth of four equal calls asked of CUDA: one graph, no wait, no allocation."""
    for _ in range(3):
        call()
    calls = runtime_calls(call)
    assert graph_launches(calls) == 1, calls
    assert not waits(calls), calls
    assert not allocations(calls), calls
    return calls
