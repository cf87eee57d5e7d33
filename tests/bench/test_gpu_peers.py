"""bench/suite/test_gpu_peers.py: a row is timed once its sample is pfdiff's."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from pfdiff.bench.measuring import deadline
from pfdiff.bench.suite import test_gpu_peers

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


def test_another_sample_is_recorded_and_fails() -> None:
    row("pfdiff", OURS)
    benchmark = Benchmark()
    with pytest.raises(AssertionError, match=r"plain: another sample, by 2\.5e-01, allowed are 0\.05"):
        test_gpu_peers.timed(benchmark, "fashion", lambda: OURS + 1, who="plain", **FACTS)
    assert benchmark.extra_info["error"] == pytest.approx(0.25)
    assert benchmark.extra_info["timed"]


def test_without_a_row_of_pfdiff_there_is_nothing_to_compare() -> None:
    row("pfdiff", OURS)
    assert row("plain", OURS + 1, network="cifar")["error"] is None


def test_small_networks_come_first_and_large_ones_are_few() -> None:
    order = list(dict.fromkeys(row[0] for row in test_gpu_peers.ROWS))
    assert order == ["fashion", "policy", "cifar", "latents"]
    rows = [row for row in test_gpu_peers.ROWS if row[0] == "latents"]
    assert len(rows) == 2  # ours, and the loop beside it
    for name in ("fashion", "policy", "cifar"):
        assert {row[1] for row in test_gpu_peers.ROWS if row[0] == name} == set(test_gpu_peers.WHO)


def test_a_row_for_which_no_time_is_left_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(deadline.UNTIL, str(time.time() + 30))
    deadline.require("fashion")
    for name, compiled in (("latents", False), ("cifar", True)):
        with pytest.raises(pytest.skip.Exception, match=r"no time left: about \d+ s are needed, (30|29) s remain"):
            deadline.require(name, compiled=compiled)
    monkeypatch.delenv(deadline.UNTIL)
    deadline.require("latents", compiled=True)
