"""In which order a search should try samplers: `python -m pfdiff.bench.studies.samplers.prior --weights DIR`.

Every sampler of the search on every small trained network of `subjects.py`, from four starts, at 5 evaluations. Then
the order is grown greedily: next is the sampler that lowers most the mean over networks of log(least error so far /
least error of all). It goes to quality/search/prior.json, by what the network predicts (eps or else) and by NFE.
`fashion` and MNIST take no part, so that they can judge it; nor do
the mixtures, whose samples flip between components, so that chance decides. Errors of one network are kept in --work.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ....engine.compiler.schedule import parse_schedule
from ....engine.compiler.start import default_start
from ....engine.errors import InputError
from ....engine.runtime.noise import noise
from ....quality.sampling.pool import Floats, Pool, Rows
from ....quality.search.candidates import Candidate, Setting, all_candidates, behaviour
from ....quality.search.prior import ALPHAS, PATH, start_of_alpha
from .small_networks import RECIPES, SIGMA_DATA, load
from .subjects import Subject, called

NFE = (5,)
SEEDS = {"moons": 64, "digits": 3, "latent": 3}
FIRST_SEED = 700_000
REFERENCE = ("unipc:order=2", "angle:power=1.5", 96)
LONGEST = 40  # samplers in an order


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="what small_networks has trained")
    parser.add_argument("--work", type=Path, required=True, help="where the errors of each network are kept")
    parser.add_argument("--nfe", type=int, nargs="+", default=NFE)
    parser.add_argument("--only-kept", action="store_true", help="from what --work has, and no more networks")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    everything: dict[str, dict[str, dict[str, dict[str, float]]]] = {"eps": {}, "others": {}}
    for nfe in given.nfe:
        for subject in networks(given.weights):
            path = given.work / f"{subject.name}_{nfe}.json"
            if given.only_kept and not path.exists():
                continue
            if not path.exists():
                began = time.monotonic()
                path.write_text(json.dumps(errors(subject, nfe)))
                print(f"{subject.name} NFE {nfe}: {time.monotonic() - began:.0f} s", flush=True)
            kind = "eps" if subject.prediction == "eps" else "others"
            everything[kind].setdefault(str(nfe), {})[subject.name] = json.loads(path.read_text())
    orders = {kind: {nfe: ordered(found) for nfe, found in by_nfe.items()} for kind, by_nfe in everything.items()}
    PATH.write_text(json.dumps(orders, indent=1) + "\n")


def networks(weights: Path) -> list[Subject]:
    """The small trained ones."""
    found = []
    for name, recipe in RECIPES.items():
        shape = {"moons": (2,), "digits": (1, 8, 8), "latent": (4, 7, 7)}[recipe.data]
        module = load(name, weights)
        found.append(Subject(name, called(module), recipe.schedule, recipe.prediction, shape, 0))
    return found


def errors(subject: Subject, nfe: int) -> dict[str, float]:
    """RMS error by sampler, over that of the least; samplers that do the same stand once."""
    kind = subject.name.partition("-")[0]
    count = SEEDS[kind]
    rows = np.arange(count)
    edm = subject.prediction == "edm"

    def network(x: Floats, t: float, _: Rows) -> Floats:
        out: Any = subject.network(torch.from_numpy(x), np.float64(t) if edm else t)
        return out.float().numpy()

    start = noise(range(FIRST_SEED, FIRST_SEED + count), subject.shape).numpy()
    pool = Pool(network, start)
    latest = default_start(subject.schedule, subject.prediction)
    setting = Setting(subject.schedule, nfe, subject.prediction, latest, sigma_data=SIGMA_DATA)
    process = parse_schedule(subject.schedule)
    from_nothing = process.velocity != "flow" and float(process.alpha(latest)) == 0
    solver, grid, many = REFERENCE
    basis = "v" if from_nothing else None
    many = min(many, int(latest) // 2) if process.discrete else many
    reference = Candidate(solver, grid, basis, latest)
    truth = pool.sample(
        reference.compile(Setting(subject.schedule, many, subject.prediction, latest, sigma_data=SIGMA_DATA)), rows
    )
    found: dict[str, float] = {}
    seen: set[str] = set()
    for one in all_candidates(setting):
        if one.grid == "auto":
            continue
        for alpha in ALPHAS:
            begun = Candidate(one.solver, one.grid, one.basis, start_of_alpha(alpha, setting))
            try:
                program = begun.compile(setting)
            except InputError:
                continue
            mark = behaviour(program)
            if mark in seen:
                continue
            seen.add(mark)
            error = float(np.sqrt(np.mean((pool.sample(program, rows).astype(np.float64) - truth) ** 2)))
            found[json.dumps([one.solver, one.grid, one.basis, alpha])] = error if math.isfinite(error) else 1e9
    return found


def ordered(found: dict[str, dict[str, float]]) -> list[Any]:
    """The greedy order over networks. A sampler that a network has not, as another does the same, has its mean."""
    names = sorted(set().union(*found.values()))
    table = np.full((len(names), len(found)), np.nan)
    for column, errors_of in enumerate(found.values()):
        least = min(errors_of.values())
        for row, name in enumerate(names):
            if name in errors_of:
                table[row, column] = math.log(max(errors_of[name], 1e-9) / max(least, 1e-9))
    table = np.minimum(np.where(np.isnan(table), np.inf, table), math.log(20))
    order: list[Any] = []
    so_far = np.full(len(found), math.log(20))
    for _ in range(LONGEST):
        after = np.minimum(table, so_far).mean(axis=1)
        # Of those that gain the same, the one that is best on its own.
        best = int(np.lexsort((table.mean(axis=1), np.round(after, 6)))[0])
        if after[best] >= so_far.mean() - 1e-6:
            break
        so_far = np.minimum(table[best], so_far)
        order.append(json.loads(names[best]))
    print(f"{len(found)} networks: {[round(float(one), 3) for one in so_far]}")
    rest = [row for row in np.argsort(table.mean(axis=1)) if json.loads(names[row]) not in order]
    return order + [json.loads(names[row]) for row in rest[: LONGEST - len(order)]]


if __name__ == "__main__":
    main()
