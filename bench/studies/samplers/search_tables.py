"""The search: `python -m pfdiff.bench.studies.samplers.search_tables fashion`, or `mnist --network FILE.onnx`.

Three parts, each one JSON file in bench/results/<machine>/:

search_NAME.json      for each NFE: DDIM on its best grid, the best other solver on its best grid, what `tune` finds,
                      and that refined; all chosen on calibration seeds and judged on held-out ones
agreement_NAME.json   Spearman's rank correlation between errors on 16 seeds and on 256 others, many samplers
seconds_NAME.json     for each NFE: wall-clock and processor time of one `tune` with an empty cache

The figures that may be quoted are those on the held-out seeds. Work is kept in the cache folder, so an interrupted run
goes on where it was. A file keeps what it has on other NFE.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ....export.network import Network
from ....quality.compare import compare
from ....quality.ranking import Ranked, Ranking
from ....quality.search.candidates import SOLVERS
from ....quality.tune import tune
from ...measuring.machine import RESULTS, describe, folder_name

PEERS = tuple(one for one in SOLVERS if one != "ddim" and not one.startswith("pfdiff:"))
# What the ranking of 16 seeds is asked to put in order: good and bad choices alike.
AGREEMENT_SOLVERS = (
    "ddim",
    "dpm++:2m",
    "unipc:order=2",
    "deis:order=3",
    "ipndm:order=3",
    "pfdiff:k=1,l=1",
    "pfdiff:k=2,l=1",
    "pfdiff:k=2,l=2",
    "pfdiff:k=3,l=1",
    "pfdiff:k=3,l=2",
)
RATIOS = (("tuned", "ddim"), ("tuned", "peer"), ("refined", "tuned"), ("refined", "ddim"))
AGREEMENT_GRIDS = ("uniform", "trailing", "logsnr", "karras")
NETWORKS: dict[str, dict[str, Any]] = {
    "fashion": {},
    "mnist": {"shape": (1, 28, 28), "schedule": "cosine:60?beta_max=0.999", "prediction": "eps", "name": "mnist"},
}
T_START = {"fashion": None, "mnist": 58}


def main(words: list[str] | None = None) -> None:
    about = str(__doc__).splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m pfdiff.bench.studies.samplers.search_tables", description=about)
    parser.add_argument("name", choices=list(NETWORKS))
    parser.add_argument("--network", help="the ONNX file of mnist")
    parser.add_argument("--nfe", type=int, nargs="+", default=[5, 8])
    parser.add_argument("--calibration", type=int, default=16)
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--part", choices=["search", "agreement", "seconds"], action="append", help="default: all")
    parser.add_argument("--out", type=Path, help="default: bench/results/<machine> beside this file")
    given = parser.parse_args(words)
    if given.name == "mnist" and not given.network:
        parser.error("mnist needs --network FILE.onnx")
    source = Network(given.network or given.name, **NETWORKS[given.name])
    folder = given.out or RESULTS / folder_name()
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"search": search_table, "agreement": agreement, "seconds": seconds}
    for part in given.part or parts:
        path = folder / f"{part}_{given.name}.json"
        for nfe in given.nfe:
            for found in parts[part](source, nfe, given):
                add(path, source, nfe, found)
        print(path, flush=True)


def add(path: Path, source: Network, nfe: int, found: dict[str, Any]) -> None:
    """Put what was found for one NFE into the file, beside what it has on others."""
    held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    tables = {**held.get("nfe", {}), str(nfe): {"machine": describe(), **found}}
    contract = source.contract
    held = {"network": contract.name, "digest": source.digest, "schedule": contract.schedule, "nfe": tables}
    path.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    """What every search of a network has in common."""
    return {
        "calibration": given.calibration,
        "held_out": given.held_out,
        "t_start": T_START[given.name],
        "threads": given.threads,
        "progress": show,
    }


def search_table(source: Network, nfe: int, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows and their ratios on the held-out seeds, with the record of the search; and again with refinement."""
    settings = settings_of(given)
    rows: dict[str, Ranked] = {}
    tuned = tune(source, nfe, **settings)
    rows["ddim"] = tune(source, nfe, solvers=["ddim"], local=False, **settings)[0]
    rows["peer"] = tune(source, nfe, solvers=PEERS, local=False, **settings)[0]
    rows["tuned"] = tuned[0]
    yield table_of(rows, tuned, given)
    refined = tune(source, nfe, refine=True, **settings)
    rows["refined"] = refined[0]
    yield table_of(rows, refined, given)


def table_of(rows: Mapping[str, Ranked], search: Ranking, given: argparse.Namespace) -> dict[str, Any]:
    """Rows, ratios and record as plain data."""
    error = {name: np.nan if one.held_out_error is None else float(one.held_out_error) for name, one in rows.items()}
    ratios = {f"{a} / {b}": error[a] / error[b] for a, b in RATIOS if a in error}
    print(json.dumps(error), json.dumps(ratios), flush=True)
    return {
        "t_start": T_START[given.name],
        "rows": {
            name: {
                "solver": one.solver,
                "grid": one.grid,
                "basis": one.basis,
                "t_start": one.t_start,
                "error": one.error,
                "held_out_error": one.held_out_error,
            }
            for name, one in rows.items()
        },
        "ratios_on_held_out_seeds": ratios,
        "search": search.to_dict(),
    }


def seconds(source: Network, nfe: int, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One `tune` from nothing."""
    kept = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            start = time.process_time()
            tuned = tune(source, nfe, **settings_of(given))
            cpu_seconds = time.process_time() - start
        finally:
            os.environ.pop("XDG_CACHE_HOME")
            os.environ.update({} if kept is None else {"XDG_CACHE_HOME": kept})
    print(f"NFE {nfe}: {tuned.seconds:.0f} s, {cpu_seconds:.0f} s of processor time", flush=True)
    yield {
        "seconds": tuned.seconds,
        "cpu_seconds": cpu_seconds,
        "evaluations": tuned.evaluations,
        "cached_evaluations": tuned.cached,
        "calibration_seeds": tuned.calibration,
        "held_out_seeds": tuned.held_out,
        "threads": given.threads,
    }


def agreement(source: Network, nfe: int, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Spearman's correlation over samplers between errors on 16 seeds and on 256 other seeds."""
    samplers = [f"{solver}@{grid}" for solver, grid in product(AGREEMENT_SOLVERS, AGREEMENT_GRIDS)]
    settings: dict[str, Any] = {"t_start": T_START[given.name], "threads": given.threads, "progress": show}
    many = compare(source, nfe, samplers, seeds=256, seed=0, **settings)
    few = compare(source, nfe, samplers, seeds=16, seed=1, **settings)
    pairs = [
        (sampler, one.error, other.error)
        for sampler, one, other in zip(samplers, few.points, many.points, strict=True)
        if one.error is not None and other.error is not None
    ]
    correlation = spearman([pair[1] for pair in pairs], [pair[2] for pair in pairs])
    print(f"Spearman {correlation:.3f} over {len(pairs)} samplers", flush=True)
    yield {
        "spearman": correlation,
        "samplers": [{"sampler": name, "error_16": few, "error_256": many} for name, few, many in pairs],
    }


def spearman(one: list[float], other: list[float]) -> float:
    """Rank correlation of two lists without ties."""
    ranks = np.array([np.argsort(np.argsort(values)) for values in (one, other)])
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    return float(np.prod(centred, axis=0).sum() / np.square(centred[0]).sum())


def show(stage: str, done: int, expected: int) -> None:
    """One line on a terminal, overwritten."""
    if sys.stderr.isatty():
        print(f"\r{stage}: {done} of {expected}".ljust(100), end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
