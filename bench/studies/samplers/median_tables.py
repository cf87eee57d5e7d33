"""What `tune --refine` finds with three sets of training seeds.

    python -m pfdiff.bench.studies.samplers.median_tables fashion --work DIR
    python -m pfdiff.bench.studies.samplers.median_tables mnist --network FILE.onnx --work DIR

train   for each NFE and each of three seeds of `tune` the tuned and the refined sampler; with the first seed DDIM on
        its best grid and the best other solver too, all as in search_tables
judge   the mean squared error of each sample of each of them, on seeds that no search has seen, block by block
report  bench/results/<machine>/medians_NAME.json: RMS errors over all blocks, and medians over the trainings

The judging reference is DDIM over all times for mnist and UniPC-2 in 72 evaluations for `fashion`. What is in --work is
not computed again; a run that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pfdiff
from pfdiff.engine.atomic import replacing
from pfdiff.quality.ranking import Ranked
from pfdiff.quality.sampling.subject import Subject

from ...measuring.machine import RESULTS, describe, folder_name
from .budget_tables import FIRST_JUDGED, judge
from .search_tables import NETWORKS, PEERS, T_START, show

SEEDS = (0, 1, 2)
JUDGED, BLOCK = 10_000, 250
RATIOS = (("tuned", "ddim"), ("tuned", "peer"), ("refined", "tuned"), ("refined", "ddim"))


def main(words: list[str] | None = None) -> None:
    about = str(__doc__).splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m pfdiff.bench.studies.samplers.median_tables", description=about)
    parser.add_argument("name", choices=list(NETWORKS))
    parser.add_argument("--network", help="the ONNX file of mnist")
    parser.add_argument("--work", type=Path, required=True, help="where what is computed is kept")
    parser.add_argument("--nfe", type=int, nargs="+", default=[5, 8])
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--judged", type=int, default=JUDGED, help=f"seeds that judge, in blocks of {BLOCK}")
    parser.add_argument("--part", choices=("train", "judge", "report", "all"), default="all")
    given = parser.parse_args(words)
    if given.name == "mnist" and not given.network:
        parser.error("mnist needs --network FILE.onnx")
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    source = pfdiff.Network(given.network or given.name, **NETWORKS[given.name])
    if given.part in ("train", "all"):
        for seed in given.seeds:
            for nfe in given.nfe:
                trained(source, given, nfe, seed)
    if given.part in ("judge", "all"):
        judged(source, given)
    if given.part in ("report", "all"):
        report(source, given)


# Training.
def trained(source: pfdiff.Network, given: argparse.Namespace, nfe: int, seed: int) -> dict[str, Any]:
    """The samplers of one training by name, as plain data."""
    path = given.work / f"{given.name}_{nfe}_{seed}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    settings: dict[str, Any] = {"calibration": 16, "held_out": 64, "t_start": T_START[given.name], "seed": seed}
    settings |= {"threads": 1, "progress": show}
    refined = pfdiff.tune(source, nfe, refine=True, **settings)
    kept = bool(refined.refinement and refined.refinement["kept"])
    rows = {"tuned": refined[1 if kept else 0], "refined": refined[0]}
    if seed == SEEDS[0]:
        rows["ddim"] = pfdiff.tune(source, nfe, solvers=["ddim"], local=False, **settings)[0]
        rows["peer"] = pfdiff.tune(source, nfe, solvers=PEERS, local=False, **settings)[0]
    record = {
        "machine": describe(),
        "evaluations": refined.evaluations,
        "seconds": refined.seconds,
        "cached_evaluations": refined.cached,
        "refinement": refined.refinement,
        "rows": {name: plain(one) for name, one in rows.items()},
    }
    with replacing(path) as part:
        part.write_text(json.dumps(record), encoding="utf-8")
    print(given.name, nfe, seed, {name: row["held_out_error"] for name, row in record["rows"].items()}, flush=True)
    return record


def plain(one: Ranked) -> dict[str, Any]:
    return {
        "solver": one.solver,
        "grid": one.grid,
        "basis": one.basis,
        "t_start": one.t_start,
        "error": one.error,
        "held_out_error": one.held_out_error,
        "program": one.program.to_dict(),
    }


# Judging.
def samplers(given: argparse.Namespace) -> dict[str, pfdiff.Program]:
    """All that were made, by "NFE seed name"."""
    found: dict[str, pfdiff.Program] = {}
    for nfe in given.nfe:
        for seed in given.seeds:
            path = given.work / f"{given.name}_{nfe}_{seed}.json"
            rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
            found |= {f"{nfe} {seed} {name}": pfdiff.Program.from_dict(row["program"]) for name, row in rows.items()}
    return found


def judged(source: pfdiff.Network, given: argparse.Namespace) -> None:
    """The squares of each block that lacks some."""
    subject, programs = Subject.of(source), samplers(given)
    with subject.opened("auto", 1) as backend:
        for first in range(0, given.judged, BLOCK):
            path = block_path(given, first)
            held = read_block(path)
            missing = {name: one for name, one in programs.items() if one.digest not in held}
            if not missing:
                continue
            seeds = range(FIRST_JUDGED + first, FIRST_JUDGED + first + BLOCK)
            criterion, rows = judge(subject, backend, given.nfe[0], seeds, T_START[given.name]), np.arange(BLOCK)
            for one in missing.values():
                if one.digest not in held:
                    held[one.digest] = criterion.squares(criterion.pool.sample(one, rows), rows)
            with replacing(path) as part, part.open("wb") as file:
                np.savez(file, **held)
            print(given.name, "judged", first + BLOCK, flush=True)


def block_path(given: argparse.Namespace, first: int) -> Path:
    return given.work / f"{given.name}_squares_{first}.npz"


def read_block(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    with np.load(path) as data:
        return {name: data[name] for name in data.files}


# The file.
def report(source: pfdiff.Network, given: argparse.Namespace) -> None:
    """Errors over the blocks that have all samplers."""
    programs = samplers(given)
    blocks = [read_block(block_path(given, first)) for first in range(0, given.judged, BLOCK)]
    blocks = [one for one in blocks if all(program.digest in one for program in programs.values())]
    squares = {name: np.concatenate([one[program.digest] for one in blocks]) for name, program in programs.items()}
    tables = {str(nfe): table(given, nfe, squares) for nfe in given.nfe}
    found = {"network": source.contract.name, "digest": source.digest, "schedule": source.contract.schedule}
    found |= {"judging_seeds": BLOCK * len(blocks), "nfe": tables}
    folder = RESULTS / folder_name()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"medians_{given.name}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for nfe, one in tables.items():
        print(nfe, json.dumps(one["errors"]), json.dumps(one["ratios"]))
    print(path)


def table(given: argparse.Namespace, nfe: int, squares: dict[str, np.ndarray]) -> dict[str, Any]:
    """Medians, ratios of medians, and each training's samplers."""
    made = {}
    for seed in given.seeds:
        record = json.loads((given.work / f"{given.name}_{nfe}_{seed}.json").read_text(encoding="utf-8"))
        for name, row in record["rows"].items():
            del row["program"]
            row |= error_of(squares[f"{nfe} {seed} {name}"])
        made[str(seed)] = record
    names = dict.fromkeys(name for record in made.values() for name in record["rows"])
    errors = {
        name: statistics.median(record["rows"][name]["judged"] for record in made.values() if name in record["rows"])
        for name in names
    }
    ratios = {f"{a} / {b}": errors[a] / errors[b] for a, b in RATIOS}
    return {"errors": errors, "ratios": ratios, "trainings": made}


def error_of(squares: np.ndarray) -> dict[str, float]:
    """RMS over seeds, and its standard error."""
    error = math.sqrt(float(np.mean(squares)))
    return {"judged": error, "standard_error": float(np.std(squares, ddof=1)) / math.sqrt(len(squares)) / (2 * error)}


if __name__ == "__main__":
    main()
