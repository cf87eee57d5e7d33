"""bench/suite/test_gpu_peers.py: a row is timed once its sample is pfdiff's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pfdiff.bench.suite import test_gpu_peers
from pfdiff.engine.errors import PfdiffError

FACTS: dict[str, Any] = {"solver": "ddim", "batch": 1, "precision": "fp16"}
OURS = torch.tensor([[1.0, -4.0]])


class Benchmark:
    """pytest-benchmark's fixture, as far as it is used."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}

    def pedantic(self, function: Any, **_: Any) -> None:
        function()
        self.extra_info["timed"] = True


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(test_gpu_peers, "drawn", {})


def row(who: str, x: torch.Tensor, network: str = "fashion") -> dict[str, Any]:
    benchmark = Benchmark()
    test_gpu_peers.timed(benchmark, network, lambda: x, who=who, **FACTS)
    return benchmark.extra_info


def test_the_error_stands_beside_the_time() -> None:
    assert row("pfdiff", OURS)["error"] == 0
    found = row("plain", OURS + 0.04)
    assert (found["error"], found["timed"], found["who"]) == (pytest.approx(0.01), True, "plain")


def test_another_sample_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    row("pfdiff", OURS)
    monkeypatch.setattr(Benchmark, "pedantic", lambda *_, **__: pytest.fail("it was timed"))
    with pytest.raises(PfdiffError, match=r"plain: another sample, by 2\.5e-01"):
        row("plain", OURS + 1)


def test_without_a_row_of_pfdiff_there_is_nothing_to_compare() -> None:
    row("pfdiff", OURS)
    assert row("plain", OURS + 1, network="cifar")["error"] is None
