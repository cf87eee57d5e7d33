"""bench/regression.py: what the passes of a run amount to, and when a run is worse than the last one."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfdiff.bench import regression as regression
from pfdiff.bench.measuring.ratios import ratio_of
from pfdiff.bench.regression import changes_between, combined, report, runs, store, table

PASSES, BLOCKS = regression.PASSES, 3
RATIOS = {
    "test_update[fashion]": "update / copy of its bytes",
    "test_network[fashion]": "network / plain onnxruntime",
    "test_sample[fashion]": "whole / bare evaluations",
}


def drawn(rng: np.random.Generator, value: float, process: float, block: float) -> list[list[float]]:
    """Block medians [passes][blocks]: relative deviations of a process, and of a block within it."""
    centres = value * np.exp(process * rng.standard_normal((PASSES, 1)))
    return (centres * np.exp(block * rng.standard_normal((PASSES, BLOCKS)))).tolist()


def passes(seed: int, slower: dict[str, float] | None = None) -> list[dict[str, Any]]:
    """pytest-benchmark's JSON of each pass, as far as it is read; `slower` multiplies a benchmark's ratio."""
    rng = np.random.default_rng(seed)
    found = {name: drawn(rng, (slower or {}).get(name, 1.0), 0.005, 0.01) for name in RATIOS}
    return [
        {
            "benchmarks": [
                {
                    "name": name,
                    "stats": {"median": 0.04, "data": [0.03, 0.04, 0.08]},
                    "extra_info": {
                        "p50_ms": 4.0,
                        "peer": None,
                        "batch": 8,
                        "overhead_ratio": sorted(found[name][number])[1] if name.startswith("test_sample") else None,
                        "shares": {"network": 0.9 + 0.01 * number},
                        "ratios": {RATIOS[name]: found[name][number]},
                    },
                }
                for name in RATIOS
            ]
        }
        for number in range(PASSES)
    ]


# One run.
def test_the_passes_of_a_run_are_put_together() -> None:
    row = combined(passes(0))["benchmarks"]["test_update[fashion]"]
    assert row["rounds"] == 3 * PASSES
    assert (row["p50_ms"], row["max_ms"], row["p90_ms"]) == (4.0, 8.0, 8.0)  # a round was ten times what is recorded
    assert (row["peer"], row["batch"], row["shares"]) == (None, 8, {"network": 0.91})
    assert row["ratios"]["update / copy of its bytes"]["value"] == pytest.approx(1, abs=0.02)


def test_each_pass_chooses_how_many_updates_a_round_has() -> None:
    """Every update takes 1 us, a round of the last pass has twice as many of them."""
    parts = passes(0)
    for one, count in zip(parts, (10, 10, 20), strict=True):
        [update] = (row for row in one["benchmarks"] if row["name"].startswith("test_update"))
        update["stats"] = {"median": count * 1e-6, "data": [count * 1e-6] * 5}
        update["extra_info"]["p50_ms"] = 1e-3
    row = combined(parts)["benchmarks"]["test_update[fashion]"]
    assert [row[name] for name in regression.QUANTILES] == [1e-3] * 4


def test_a_sample_takes_the_median_time_over_its_batch() -> None:
    """Which the median of the passes' medians, here 5 ms, is not."""
    parts = passes(0)
    for one, data in zip(parts, ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [1.0, 9.0, 9.0]), strict=True):
        for row in one["benchmarks"]:
            row["stats"] = {"median": np.median(data), "data": data}
            row["extra_info"] |= {"p50_ms": np.median(data), "per_sample_ms": np.median(data) / 8}
    row = combined(parts)["benchmarks"]["test_sample[fashion]"]
    assert (row["p50_ms"], row["per_sample_ms"]) == (4.0, 0.5)


def test_the_overhead_is_the_ratio_that_is_tracked() -> None:
    """The median of all blocks, which the median of the passes' medians need not be."""
    parts = passes(0)
    for one, blocks in zip(parts, ([1.1, 1.1, 1.1], [1.1, 1.2, 1.3], [1.1, 1.4, 1.5]), strict=True):
        info = one["benchmarks"][-1]["extra_info"]
        info |= {"overhead_ratio": blocks[1], "ratios": {"whole / bare evaluations": blocks}}
    rows = combined(parts)["benchmarks"]
    assert rows["test_sample[fashion]"]["ratios"]["whole / bare evaluations"]["value"] == 1.1
    assert rows["test_sample[fashion]"]["overhead_ratio"] == 1.1
    assert rows["test_update[fashion]"]["overhead_ratio"] is None


def in_the_last_pass(**facts: Any) -> list[dict[str, Any]]:
    """Passes of which the last one says something else of its samples."""
    parts = passes(0)
    for number, one in enumerate(parts):
        info = one["benchmarks"][-1]["extra_info"]
        info |= {"threads": 1, "commit": "a", "floor_ms": None, "ours": {"backend": "onnxruntime", "p50_ms": 3.0}}
        info |= facts if number == PASSES - 1 else {}
    return parts


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"threads": 2}, "threads is 1 in one pass and 2 in another"),
        ({"floor_ms": 1.0}, "floor_ms is None in one pass and 1.0 in another"),
        ({"peer": "diffusers 1"}, "peer is None in one pass and 'diffusers 1' in another"),
    ],
)
def test_passes_that_differ_are_not_one_run(
    facts: dict[str, Any],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(regression, "passes", lambda count, options: in_the_last_pass(**facts))
    assert regression.main(["--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == f"make bench: test_sample[fashion]: {said}; run the suite again; nothing is stored\n"
    assert not runs(tmp_path)


def test_what_each_pass_finds_is_all_stored() -> None:
    found = combined(in_the_last_pass(commit="a+", ours={"backend": "openvino", "p50_ms": 4.0}))
    row = found["benchmarks"]["test_sample[fashion]"]
    assert row["commit"] == "a or a+"
    assert row["ours"] == {"backend": "onnxruntime or openvino", "p50_ms": 3.0}


def test_a_ratio_is_the_median_of_its_blocks() -> None:
    found = ratio_of([[1.0, 1.1, 1.2], [1.1, 1.1, 1.4], [0.9, 1.0, 1.1]])
    assert found.value == 1.1
    quarter, three_quarters = 1.0, 1.1  # third and seventh of 0.9 1.0 1.0 1.1 1.1 1.1 1.1 1.2 1.4
    assert found.spread == pytest.approx(5 * (three_quarters - quarter) / 1.349 / 3**0.5)


@pytest.mark.parametrize(
    ("process", "block", "most"), [(0.01, 0.01, 0.002), (0.0, 0.02, 0.001), (0.02, 0.005, 0.006), (0.02, 0.0, 0.002)]
)
def test_two_runs_of_the_same_code_agree_within_their_spreads(process: float, block: float, most: float) -> None:
    """`most`: the share of pairs taken for worse, where processes differ, or only their blocks, or both."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(4000):
        one, other = (ratio_of(drawn(rng, 1.3, process, block)) for _ in range(2))
        wrong += other.value - one.value > np.hypot(one.spread, other.spread)
    assert wrong <= 4000 * most


# Two runs.
def worse(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {one.benchmark for one in changes_between(before, after) if one.verdict == "worse"}


@pytest.mark.parametrize("slow", list(RATIOS))
def test_a_run_that_is_ten_per_cent_slower_fails(slow: str) -> None:
    before, after = combined(passes(0)), combined(passes(1, {slow: 1.1}))
    assert worse(before, after) == {slow}
    assert worse(after, before) == set()
    assert [one.benchmark for one in changes_between(after, before) if one.verdict == "better"] == [slow]


def test_an_equal_run_passes() -> None:
    assert worse(combined(passes(0)), combined(passes(1))) == set()


def test_a_wide_spread_hides_what_it_must() -> None:
    before = combined(passes(0))
    after = copy.deepcopy(before)
    [ratio] = after["benchmarks"]["test_update[fashion]"]["ratios"].values()
    ratio["value"] += 0.1
    assert worse(before, after) == {"test_update[fashion]"}
    ratio["spread"] = 0.11
    assert worse(before, after) == set()


def test_what_is_only_in_one_run_is_named_and_does_not_fail() -> None:
    before, after = combined(passes(0)), combined(passes(1))
    del before["benchmarks"]["test_update[fashion]"]
    del after["benchmarks"]["test_network[fashion]"]
    verdicts = {one.benchmark: one.verdict for one in changes_between(before, after)}
    assert verdicts["test_update[fashion]"] == "new"
    assert verdicts["test_network[fashion]"] == "gone"
    assert report(changes_between(before, after))[-1] == "1 of 3 ratios are the same within their spread"


# Files.
def test_runs_are_numbered_and_read_back(tmp_path: Path) -> None:
    (tmp_path / "pareto_fashion.json").write_text("[]")
    run = combined(passes(0))
    run["machine"]["commit"] = "0123456789abcdef+"
    assert store(tmp_path, run).name == "0001_0123456789ab.json"
    (tmp_path / "0007_other.json").write_text("{}")
    assert store(tmp_path, run).name == "0008_0123456789ab.json"
    assert [path.name[:4] for path in runs(tmp_path)] == ["0001", "0007", "0008"]
    assert json.loads(runs(tmp_path)[0].read_bytes()) == run


TORCH = """
from types import SimpleNamespace as Part

__version__, version = "2", Part(cuda={cuda!r})
cuda = Part(is_available=lambda: True, device_count=lambda: 1, get_device_name=lambda index=0: "NVIDIA H200")
cuda.get_device_capability, cuda.get_arch_list = lambda index: (9, 0), lambda: {kernels!r}
"""


@pytest.mark.parametrize(
    ("cuda", "kernels", "folder"),
    [
        ("13.0", ["sm_90"], "nvidia-h200"),
        ("13.0", ["sm_120"], r"[a-z0-9-]+-\d+-cores"),  # no kernels for that GPU: the suite runs on the CPU
        (None, [], r"[a-z0-9-]+-\d+-cores"),
    ],
)
def test_a_device_has_its_own_folder(cuda: str | None, kernels: list[str], folder: str, tmp_path: Path) -> None:
    """In a process that has not imported torch, as that of `make bench`; the torch that it finds is a stand-in."""
    (tmp_path / "torch.py").write_text(TORCH.format(cuda=cuda, kernels=kernels))
    words = [sys.executable, "-m", "pfdiff.bench.measuring.machine"]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert re.fullmatch(folder, done.stdout.strip()), done.stdout + done.stderr


def test_make_bench_fails_on_a_worse_ratio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(seed: int, slower: dict[str, float] | None = None) -> int:
        monkeypatch.setattr(regression, "passes", lambda count, options: passes(seed, slower))
        return regression.main(["--results", str(tmp_path)])

    assert main(0) == 0
    assert "the first run of this device" in capsys.readouterr().out
    assert main(1) == 0
    assert "3 of 3 ratios are the same" in capsys.readouterr().out
    assert main(2, {"test_network[fashion]": 1.1}) == 1
    text = capsys.readouterr().out
    assert "worse: network[fashion]: network / plain onnxruntime 0.997 -> 1.104" in text
    assert len(runs(tmp_path)) == 3


def test_budgets_are_said() -> None:
    run = combined(passes(0))
    row = run["benchmarks"]["test_update[fashion]"]
    row["budget_ms"] = 3.0
    assert "update[fashion]: 4 ms, max 8  over its budget" in table(run)
    row["budget_ms"] = 5.0
    assert "update[fashion]: 4 ms, max 8" in table(run)


def test_p99_takes_a_hundred_rounds() -> None:
    run = combined(passes(0))
    row = run["benchmarks"]["test_update[fashion]"]
    row |= {"rounds": 99, "p99_ms": 7.0}
    assert "update[fashion]: 4 ms, max 8" in table(run)
    row["rounds"] = 100
    assert "update[fashion]: 4 ms, p99 7" in table(run)
