"""A slow-down of 10 % planted in the updates, then in the network: does the comparison of `regression` catch it?

`python -m pfdiff.bench.studies.planted` runs the benchmarks of networks and updates four times: as they are, as they
are again, with each of the two planted. bench/results/<device>/planted.json keeps every ratio of the last three beside
the first.
Exit status 0 when both are caught and nothing else is.

As a pytest plugin this module plants what the variable PFDIFF_PLANTED names. Updates: what the benchmark times is calls
of N updates; of all of these every tenth is done twice, by calls that do N + 1. The calls are counted in all four runs,
so what that costs is in none of the ratios. Network: after each evaluation a tenth of its time is waited.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..measuring.machine import RESULTS, describe, folder_name
from ..measuring.ratios import rounded
from ..regression import PASSES, Change, changes_between, combined, passes

VARIABLE = "PFDIFF_PLANTED"
EVERY = 10  # at least the benchmarks' N
SELECTED = ["-p", "pfdiff.bench.studies.planted", "-k", "(test_network or test_update) and fashion"]
MEANT = {"": "", "update": "test_update", "network": "test_network"}


def main(words: list[str] | None = None) -> int:
    """Measure, write, print."""
    about = str(__doc__).splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m pfdiff.bench.studies.planted", description=about)
    parser.add_argument("--passes", type=int, default=PASSES)
    parser.add_argument("--out", type=Path, help="default: bench/results/<device>/planted.json")
    given = parser.parse_args(words)
    first = _run("", given.passes)
    found = {plant or "nothing": changes_between(first, _run(plant, given.passes)) for plant in MEANT}
    path = given.out or RESULTS / folder_name() / "planted.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {plant: [_row(one) for one in changes] for plant, changes in found.items()}
    path.write_text(json.dumps({"machine": describe(), "planted": rows}, indent=1) + "\n", encoding="utf-8")
    right = True
    for plant, changes in found.items():
        worse = [one for one in changes if one.verdict == "worse"]
        meant = [one for one in changes if MEANT.get(plant, "") and one.benchmark.startswith(MEANT[plant])]
        stray = [one for one in worse if one not in meant]
        right = right and not stray and bool(meant) == bool(set(worse) & set(meant))
        print(f"{plant}: {len(set(worse) & set(meant))} of {len(meant)} ratios meant, {len(stray)} others are worse")
    print(path)
    return 0 if right else 1


def _run(plant: str, count: int) -> dict[str, Any]:
    os.environ[VARIABLE] = plant
    return combined(list(passes(count, SELECTED)))


def _row(one: Change) -> Mapping[str, Any]:
    before, after = (ratio and ratio.value for ratio in (one.before, one.after))
    row = {"benchmark": one.benchmark, "ratio": one.name, "before": before, "after": after, "margin": one.margin}
    return rounded({**row, "verdict": one.verdict})


# The plugin.
def pytest_configure() -> None:
    """Plant what the variable says, in this process."""
    if VARIABLE in os.environ:
        plant_updates(slower=os.environ[VARIABLE] == "update")
        if os.environ[VARIABLE] == "network":
            _plant_network()


def plant_updates(*, slower: bool) -> None:
    """`CpuLoop.updates` with its calls counted; where it is to be slower, some do an update more."""
    from ...engine.runtime.cpu_loop import CpuLoop
    from ...engine.runtime.loop import Tables

    loop = CpuLoop.updates

    def updates(self: CpuLoop, tables: Tables, size: int) -> Callable[[], None]:
        nfe, owed = tables.nfe, 0
        longer = nfe + slower
        again = tables.update[[*range(nfe), 0]]
        derived = {"update": again, "nfe": nfe, "buffers": tables.buffers, "scaled": tables.scaled, "adds": tables.adds}
        given: Any = SimpleNamespace(**{**vars(tables), **derived})  # Tables whose N changes from call to call
        bare = loop(self, given, size)

        def counted() -> None:
            nonlocal owed
            owed += nfe
            if owed >= EVERY:
                owed -= EVERY
                given.nfe = longer
            else:
                given.nfe = nfe
            bare()

        return counted

    CpuLoop.updates = updates


def _plant_network() -> None:
    from ...engine.backends.registry import BACKENDS, is_installed

    for name in ("onnxruntime", "openvino"):
        if is_installed(name):
            backend = getattr(import_module(f"...engine.backends.{BACKENDS[name][0]}", __package__), BACKENDS[name][1])
            backend.bind = _slower(backend.bind)


def _slower(bind: Callable[..., list[Callable[[], Any]]]) -> Callable[..., list[Callable[[], Any]]]:
    def waiting(evaluate: Callable[[], Any]) -> Callable[[], Any]:
        def evaluate_and_wait() -> Any:
            start = time.perf_counter()
            out = evaluate()
            end = time.perf_counter()
            while time.perf_counter() < end + 0.1 * (end - start):
                pass
            return out

        return evaluate_and_wait

    return lambda *given: [waiting(one) for one in bind(*given)]


if __name__ == "__main__":
    sys.exit(main())
