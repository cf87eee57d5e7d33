"""`make bench`: runs the suite, compares it with the last run, and fails when this project has become slower.

The suite runs PASSES times in fresh processes and is stored as one small file.
bench/results/<device>/NNNN_<commit>.json holds quantiles and, of each benchmark, its ratios. Only ratios of times of
one round are compared, never times: a machine is faster today than yesterday, a ratio is not. All are written so that
larger is worse for this project. Of the PASSES x BLOCKS values r of one ratio (`ratios.blocks`)

    value  = median r                    spread = WIDTH IQR(r) / 1.349 / sqrt(PASSES)

where IQR / 1.349 is the standard deviation of what is normal and ignores the blocks in which something else ran. The
blocks of one process are taken as if they said the same thing: what differs between processes (where memory lies,
which threads share a core) does not average out within one. A run is worse than the last one where

    value' - value > sqrt(spread'^2 + spread^2)

WIDTH is five standard errors, for a deviation from so few values is itself uncertain: of two runs of the same code one
ratio in 1,000 is taken for worse where blocks vary as much as processes, one in 200 where mostly processes do
(tests/bench/test_regression.py).

Every library gets one thread: with two on two cores each barrier waits for whatever else runs there, and ratios near 1
had spreads of 0.1 to 0.5. Exit status 1 when a ratio is worse, 2 when the suite itself failed.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from ..engine.errors import InputError
from .measuring.machine import RESULTS, describe, folder_name
from .measuring.ratios import OVERHEAD, Ratio, ratio_of, rounded

PASSES = 3
THREADS = 1
FOUND = (": commit", ": ours.backend")  # what a process finds and nobody chose: where passes differ, all are stored
P99_ROUNDS = 100  # of fewer, p99 is the largest or next to it, and is not shown
QUANTILES = {"p50_ms": 50, "p90_ms": 90, "p99_ms": 99, "max_ms": 100}


@final
@dataclass(frozen=True)
class Change:
    """One ratio in two runs; None where a run does not have it."""

    benchmark: str
    name: str
    before: Ratio | None
    after: Ratio | None

    @property
    def margin(self) -> float:
        """By how much the ratio may differ before it counts; infinite where there is nothing to compare."""
        if self.before is None or self.after is None:
            return math.inf
        return math.hypot(self.before.spread, self.after.spread)

    @property
    def verdict(self) -> str:
        """worse, better, same, new or gone."""
        if self.before is None or self.after is None:
            return "new" if self.before is None else "gone"
        difference = self.after.value - self.before.value
        return "same" if abs(difference) <= self.margin else "worse" if difference > 0 else "better"


def main(words: Sequence[str] | None = None) -> int:
    """Run, store, compare, print."""
    about = str(__doc__).splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m pfdiff.bench.regression", description=about)
    parser.add_argument("--passes", type=int, default=PASSES)
    parser.add_argument("--results", type=Path, help="default: bench/results/<device>")
    parser.add_argument("pytest", nargs="*", help="further options of pytest, after --")
    given = parser.parse_args(words)
    start = time.perf_counter()
    try:
        run = combined(list(passes(given.passes, given.pytest)))
    except subprocess.CalledProcessError as error:
        print(f"make bench: the suite failed, pytest exit {error.returncode}; nothing is stored", file=sys.stderr)
        return 2
    except InputError as error:
        print(f"make bench: {error}; nothing is stored", file=sys.stderr)
        return 2
    run["seconds"] = round(time.perf_counter() - start)
    folder = given.results or RESULTS / folder_name()
    stored = runs(folder)
    path = store(folder, run)
    print(*table(run), sep="\n")
    if not stored:
        print(f"{path}: the first run of this device, nothing to compare with")
        return 0
    changes = changes_between(json.loads(stored[-1].read_bytes()), run)
    print(f"\n{path} against {stored[-1].name}, {run['seconds']} s")
    print(*report(changes), sep="\n")
    return 1 if any(one.verdict == "worse" for one in changes) else 0


# Running.
def passes(count: int, options: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The suite in `count` processes, one after the other; pytest-benchmark's JSON of each."""
    with tempfile.TemporaryDirectory(prefix="pfdiff-bench-") as folder:
        for number in range(count):
            path = Path(folder, f"{number}.json")
            words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", "-m", "not gpu"]
            words += [f"--benchmark-json={path}", "--benchmark-disable-gc", f"--built={folder}/engines"]
            words += [
                "--benchmark-columns=median,iqr",
                f"--threads={THREADS}",
                "-p",
                "pfdiff.bench.options",
                "--pyargs",
                "pfdiff.bench",
                *options,
            ]
            print(f"pass {number + 1} of {count}", flush=True)
            subprocess.run(words, check=True, stdout=sys.stderr if number == 0 else subprocess.DEVNULL)
            yield json.loads(path.read_bytes())


def combined(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One run out of pytest-benchmark's JSON of its passes: quantiles over all their rounds, ratios with spreads."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for one in found:
        for benchmark in one["benchmarks"]:
            by_name.setdefault(benchmark["name"], []).append(benchmark)
    return {
        "format": 1,
        "machine": describe(),
        "passes": len(found),
        "benchmarks": {name: _combined(name, parts) for name, parts in by_name.items()},
    }


def _combined(name: str, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    infos = [one["extra_info"] for one in parts]
    row = {key: _together([info[key] for info in infos], f"{name}: {key}") for key in infos[0] if key != "ratios"}
    rounds = np.concatenate([_rounds_ms(one) for one in parts])
    quantiles = np.percentile(rounds, list(QUANTILES.values())).tolist()
    row |= {"rounds": len(rounds), **dict(zip(QUANTILES, quantiles, strict=True))}
    row["per_sample_ms"] = row["p50_ms"] / row["batch"]
    row["ratios"] = {
        name: vars(ratio_of([info["ratios"][name] for info in infos])) for name in infos[0].get("ratios", {})
    }
    if OVERHEAD in row["ratios"]:
        row["overhead_ratio"] = row["ratios"][OVERHEAD]["value"]
    return rounded(row)


def _rounds_ms(part: Mapping[str, Any]) -> NDArray[np.float64]:
    """One pass's rounds in what its p50_ms is of: evaluations or updates, of which a round has as many as it chose."""
    stats = part["stats"]
    return np.asarray(stats["data"]) * (part["extra_info"]["p50_ms"] / stats["median"])


def _together(values: Sequence[Any], where: str) -> Any:
    """The median of numbers, of each of a mapping's numbers, or what is the same in all passes. Raises InputError."""
    first = values[0]
    if all(isinstance(one, Mapping) for one in values):
        return {key: _together([one[key] for one in values], f"{where}.{key}") for key in first}
    if all(isinstance(one, float) for one in values):
        return float(np.median(values))
    others = [one for one in values if one != first]
    if not others:
        return first
    if where.endswith(FOUND):
        return " or ".join(dict.fromkeys(map(str, values)))
    raise InputError(f"{where} is {first!r} in one pass and {others[0]!r} in another; run the suite again")


# Storing.
def runs(folder: Path) -> list[Path]:
    """The stored runs of a device, the oldest first."""
    return sorted(path for path in folder.glob("*.json") if re.match(r"\d{4}_", path.name))


def store(folder: Path, run: Mapping[str, Any]) -> Path:
    """Write the run under the next number."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(path.name[:4]) for path in runs(folder)), default=0)
    commit = str(run["machine"]["commit"] or "nowhere")[:12]
    path = folder / f"{number:04d}_{commit}.json"
    path.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    return path


# Comparing.
def changes_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Every ratio of two runs."""
    old, new = (dict(_ratios(run)) for run in (before, after))
    return [Change(*key, old.get(key), new.get(key)) for key in {**old, **new}]


def _ratios(run: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Ratio]]:
    for benchmark, row in run["benchmarks"].items():
        for name, ratio in row["ratios"].items():
            yield (benchmark, name), Ratio(**ratio)


def table(run: Mapping[str, Any]) -> list[str]:
    """A line for each benchmark and for each of its ratios."""
    lines = []
    for name, row in run["benchmarks"].items():
        budget = row.get("budget_ms")
        over = "  over its budget" if budget and row.get("added_ms", row["p50_ms"]) > budget else ""
        slow = f"p99 {row['p99_ms']:.4g}" if row["rounds"] >= P99_ROUNDS else f"max {row['max_ms']:.4g}"
        lines.append(f"{name.removeprefix('test_')}: {row['p50_ms']:.4g} ms, {slow}{over}")
        lines += [f"    {kind} {one['value']:.3f} +- {one['spread']:.3f}" for kind, one in row["ratios"].items()]
    return lines


def report(changes: Sequence[Change]) -> list[str]:
    """What differs, and how many do not."""
    lines = []
    for one in changes:
        if one.verdict in ("worse", "better") and one.before and one.after:
            where = f"{one.benchmark.removeprefix('test_')}: {one.name}"
            lines.append(f"{one.verdict}: {where} {one.before.value:.3f} -> {one.after.value:.3f} +- {one.margin:.3f}")
        elif one.verdict in ("new", "gone"):
            lines.append(f"{one.verdict}: {one.benchmark.removeprefix('test_')}: {one.name}")
    same = sum(one.verdict == "same" for one in changes)
    return [*lines, f"{same} of {len(changes)} ratios are the same within their spread"]


if __name__ == "__main__":
    sys.exit(main())
