"""Error against latency: `python -m pfdiff.bench.studies.samplers.pareto fashion`, or `mnist --network FILE.onnx`.

Curves, each at several NFE: DDIM on its best grid, other solvers on theirs at the same NFE, and what `tune` finds and,
up to --refine-to NFE, refines. Of each point the RMS error on held-out seeds, and the median time of a whole sample at
batch 1, all in turns and on the same backend. Two files in bench/results/<machine>/:

pareto_NAME.json   {network, machine, backend, threads, seeds, points}, a point {curve, solver, grid, nfe, error,
                   latency_ms}; curve: ddim, tuned, or the solver that was asked for
pareto_NAME.png    its plot

What is printed at the end: for each point of DDIM, its error over the least that a tuned engine reached in no more
time, give or take 1 %.
With --work the engines are kept, and an NFE that one has is not searched again: run it once for the search and again,
on an idle machine, for the times.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ....engine.api import load
from ....engine.artifact import MANIFEST, read_artifact
from ....engine.errors import InputError
from ....engine.runtime.timing.latency import in_turns
from ....export.network import Network
from ....quality.pictures.plot import Curve, log_plot, write_plot
from ....quality.tune import tune
from ...measuring.machine import RESULTS, describe, folder_name
from ...measuring.measure import PAUSE_S
from .search_tables import NETWORKS, T_START, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DDIM_NFE = (5, 6, 8, 10, 15, 20, 30)
SOLVERS = ("dpm++:2m", "unipc:order=2", "pfdiff:k=2,l=1")
TUNED_NFE = (4, 5, 8, 12, 20, 30)
HELD_OUT = 64
REFINE_TO = 12  # which takes one core more than half an hour, and 20 several times that
SAME_TIME = 1.01  # of two engines of one NFE the times differ by as much, either way
ROUNDS = 30

Point = Mapping[str, Any]


def main(words: list[str] | None = None) -> None:
    about = str(__doc__).splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m pfdiff.bench.studies.samplers.pareto", description=about)
    parser.add_argument("name", choices=list(NETWORKS))
    parser.add_argument("--network", help="the ONNX file of mnist")
    parser.add_argument("--ddim-nfe", type=int, nargs="+", default=DDIM_NFE)
    parser.add_argument("--solvers", nargs="*", default=SOLVERS, help="others on their best grid, at DDIM's NFE")
    parser.add_argument("--tuned-nfe", type=int, nargs="+", default=TUNED_NFE)
    parser.add_argument("--refine-to", type=int, default=REFINE_TO, metavar="NFE", help="larger ones are only tuned")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--work", type=Path, help="keep the engines in this folder; default: a temporary one")
    parser.add_argument("--out", type=Path, help="default: bench/results/<machine> beside this file")
    given = parser.parse_args(words)
    if given.name == "mnist" and not given.network:
        parser.error("mnist needs --network FILE.onnx")
    folder = given.out or RESULTS / folder_name()
    for one in filter(None, (folder, given.work)):
        one.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(given, given.work or Path(temporary))
    path = folder / f"pareto_{given.name}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_plot(path.with_suffix(".png"), plot(given.name, found["points"]))
    print(*at_equal_latency(found["points"]), path, path.with_suffix(".png"), sep="\n")


def measure(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All curves, searched in the folder `work`, an engine each, and timed."""
    source = Network(given.network or given.name, **NETWORKS[given.name])
    settings = {"t_start": T_START[given.name], "threads": given.threads, "progress": show}
    solvers: tuple[str, ...] = tuple(dict.fromkeys(("ddim", *given.solvers)))
    counts: tuple[int, ...] = tuple(given.ddim_nfe)
    paths = {curve: work / f"{given.name}_{curve}.engine" for curve in (*solvers, "tuned")}
    points: list[Point] = []
    for solver, nfe in product(solvers, counts):
        try:
            found = searched(source, nfe, paths[solver], solvers=[solver], local=False, **settings)
        except InputError as error:  # few times trained, and a solver that walks several for an evaluation
            print(f"{nfe:3} NFE: {error}", flush=True)
        else:
            points.append({"curve": solver, **found})
    points += [
        {"curve": "tuned", **searched(source, nfe, paths["tuned"], refine=nfe <= given.refine_to, **settings)}
        for nfe in given.tuned_nfe
    ]
    with ExitStack() as opened:
        ddim = opened.enter_context(load(paths.pop("ddim"), threads=given.threads))
        engines = {"ddim": ddim}
        for curve, path in paths.items():
            engines[curve] = opened.enter_context(load(path, threads=given.threads, backend=ddim.backend))
        parts = [engines[one["curve"]].parts(one["nfe"]) for one in points]
        times = in_turns([one.whole for one in parts], given.rounds, parts[0].timer, PAUSE_S)
        return {
            "network": given.name,
            "machine": describe(),
            "backend": ddim.backend,
            "threads": ddim.threads,
            "seeds": HELD_OUT,
            "points": [
                {**one, "latency_ms": float(latency_ms)}
                for one, latency_ms in zip(points, np.median(times, axis=0), strict=True)
            ],
        }


def searched(source: Network, nfe: int, engine: Path, **settings: Any) -> dict[str, Any]:
    """What `tune` finds for one NFE; what an earlier run found when `engine` has it."""
    held = read_artifact(engine).provenance if (engine / MANIFEST).is_file() else {}
    if held and held.get("network_digest") != source.digest:  # tune replaces no engine, and this folder is our own
        shutil.rmtree(engine)
        held = {}
    record = held.get("search", {}).get(str(nfe))
    if record is None:
        record = tune(source, nfe, held_out=HELD_OUT, out=engine, **settings).to_dict()
    best = record["ranking"][0]
    print(f"{nfe:3} NFE, error {best['held_out_error']:.4f}, {record['seconds']:.0f} s: {best['solver']}", flush=True)
    return {"solver": best["solver"], "grid": best["grid"], "nfe": nfe, "error": best["held_out_error"]}


def curve_of(point: Point) -> str:
    """ddim, tuned, or the solver that was asked for; older files have DDIM and what was tuned alone, and do not say."""
    return point.get("curve") or ("ddim" if point["solver"] == "ddim" else "tuned")


def pairs(points: Sequence[Point]) -> list[tuple[Point, Point | None]]:
    """Each point of DDIM, and the engine that was tuned with the least error in its time, if any is as fast."""
    tuned = [one for one in points if curve_of(one) == "tuned"]
    found = []
    for plain in (one for one in points if curve_of(one) == "ddim"):
        in_time = [one for one in tuned if one["latency_ms"] <= SAME_TIME * plain["latency_ms"]]
        found.append((plain, min(in_time, key=lambda one: one["error"], default=None)))
    return found


def at_equal_latency(points: Sequence[Point]) -> Iterator[str]:
    """A Markdown table of `pairs`: in the time of each point of DDIM, how many times less error there is to have."""
    yield "| DDIM, NFE | ms | error | the best engine in that time | NFE | ms | error | DDIM's error / its |"
    yield "|--:|--:|--:|---|--:|--:|--:|--:|"
    for plain, best in pairs(points):
        row = f"| {plain['nfe']} | {plain['latency_ms']:.1f} | {plain['error']:.4f} |"
        if best is None:
            yield f"{row} none | | | | |"
        else:
            mine = f"{best['solver']} | {best['nfe']} | {best['latency_ms']:.1f} | {best['error']:.4f}"
            yield f"{row} {mine} | {plain['error'] / best['error']:.2f} |"


def plot(name: str, points: Sequence[Point]) -> Figure:
    """Error against latency, both logarithmic: DDIM, half of its error, what was tuned as one family, other solvers."""
    curves: dict[str, list[tuple[float, float]]] = {"ddim": [], "tuned": []}
    for one in points:
        curves.setdefault(curve_of(one), []).append((one["latency_ms"], one["error"]))
    plain, tuned = curves.pop("ddim"), curves.pop("tuned")
    refined = any(one["solver"].endswith(" refined") for one in points)
    shown = [
        Curve("DDIM, best grid", plain),
        Curve("half of DDIM's error", [(latency_ms, error / 2) for latency_ms, error in plain]),
        Curve("tuned and refined" if refined else "tuned", tuned),
        *(Curve(f"{curve}, best grid", found) for curve, found in curves.items()),
    ]
    return log_plot(
        shown,
        title=f"{name}: error against the time for one sample",
        x_label="ms for one sample, batch 1",
        y_label="RMS error",
        note=f"{HELD_OUT} held-out seeds",
        log_x=True,
    )


if __name__ == "__main__":
    main()
