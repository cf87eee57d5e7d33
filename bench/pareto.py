"""Error against latency: `python -m pfdiff.bench.pareto fashion`, or `mnist --network FILE.onnx`.

DDIM on its best grid, and what `tune` finds and refines (or with --no-refine only finds), each at several NFE: the RMS
error on held-out seeds, and the median time of a whole sample at batch 1. Two files in bench/results/<machine>/:

pareto_NAME.json   a list of {network, solver, grid, nfe, latency_ms, error, seeds, threads, commit, time}
pareto_NAME.png    its plot

What is printed at the end: for each point of DDIM, its error over the least that an engine reached in no more time.
The search is kept in the cache folder, so run it once for the search and again, on an idle machine, for the times.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..engine.api import load
from ..export.build import build
from ..export.compare import compare
from ..export.plot import Curve, log_plot
from ..export.sources import Network
from ..export.tune import tune
from .machine import describe, folder_name
from .search_tables import NETWORKS, T_START, show

DDIM_NFE = (5, 6, 8, 10, 15, 20, 30)
TUNED_NFE = (5, 8)
HELD_OUT = 64
ROUNDS = 15

Point = dict[str, Any]


def main(words: list[str] | None = None) -> None:
    about = str(__doc__).splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m pfdiff.bench.pareto", description=about)
    parser.add_argument("name", choices=list(NETWORKS))
    parser.add_argument("--network", help="the ONNX file of mnist")
    parser.add_argument("--ddim-nfe", type=int, nargs="+", default=DDIM_NFE)
    parser.add_argument("--tuned-nfe", type=int, nargs="+", default=TUNED_NFE)
    parser.add_argument("--refine", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="default: bench/results/<machine> beside this file")
    given = parser.parse_args(words)
    if given.name == "mnist" and not given.network:
        parser.error("mnist needs --network FILE.onnx")
    folder = given.out or Path(__file__).parent / "results" / folder_name()
    folder.mkdir(parents=True, exist_ok=True)
    points = measure(given)
    path = folder / f"pareto_{given.name}.json"
    path.write_text(json.dumps(points, indent=1) + "\n", encoding="utf-8")
    plot(given.name, points).save(path.with_suffix(".png"))
    for one, ratio in at_equal_latency(points):
        print(f"DDIM {one['nfe']:3} NFE {one['latency_ms']:8.2f} ms, error {one['error']:.4f}: {ratio:.2f} x the least")
    print(path, path.with_suffix(".png"))


def measure(given: argparse.Namespace) -> list[Point]:
    """Both curves, found, built and timed."""
    source = Network(given.network or given.name, **NETWORKS[given.name])
    settings = {"t_start": T_START[given.name], "threads": given.threads, "progress": show}
    machine = describe()
    common = {"seeds": HELD_OUT, "threads": given.threads, "commit": machine["commit"], "time": machine["time"]}
    found: list[Point] = []
    with tempfile.TemporaryDirectory() as folder:
        plain, best = Path(folder) / "ddim.engine", Path(folder) / "tuned.engine"
        for one in compare(source, given.ddim_nfe, ["ddim@best"], seeds=HELD_OUT, **settings).points:
            assert one.program is not None, one.note
            start = float(one.program.times[0])
            build(source, one.nfe, "ddim", grid=one.grid, basis=one.basis, t_start=start, out=plain).close()
            found.append({"solver": "ddim", "grid": one.grid, "nfe": one.nfe, "error": one.error})
        for nfe in given.tuned_nfe:
            one = tune(source, nfe, held_out=HELD_OUT, refine=given.refine, out=best, **settings)[0]
            found.append({"solver": one.solver, "grid": one.grid, "nfe": nfe, "error": one.held_out_error})
        with load(plain, threads=given.threads) as ddim, load(best, threads=given.threads) as tuned:
            for one in found:
                engine = ddim if one["solver"] == "ddim" else tuned
                one["latency_ms"] = engine.bench(one["nfe"], batch=1, rounds=given.rounds).p50_ms
    return [{"network": given.name, **one, **common} for one in found]


def at_equal_latency(points: list[Point]) -> list[tuple[Point, float]]:
    """For each point of DDIM: its error over the least that a tuned engine reached in no more time."""
    tuned = [one for one in points if one["solver"] != "ddim"]
    found = []
    for plain in (one for one in points if one["solver"] == "ddim"):
        in_time = [one["error"] for one in tuned if one["latency_ms"] <= plain["latency_ms"]]
        if in_time:
            found.append((plain, plain["error"] / min(in_time)))
    return found


def plot(name: str, points: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Error against latency, both logarithmic: DDIM, and every other solver as one family that was tuned."""
    refined = all(one["solver"].endswith((" refined", "ddim")) for one in points)
    ways = {"DDIM, best grid": True, "tuned and refined" if refined else "tuned": False}
    curves = [
        Curve(way, [(one["latency_ms"], one["error"]) for one in points if (one["solver"] == "ddim") == plain])
        for way, plain in ways.items()
    ]
    return log_plot(
        curves,
        title=f"{name}: error against the time for one sample",
        x_label="ms for one sample, batch 1",
        y_label="RMS error",
        note=f"{HELD_OUT} held-out seeds",
        log_x=True,
    )


if __name__ == "__main__":
    main()
