"""`fashion` with optimised tables: `python -m pfdiff.bench.studies.samplers.refined_tables --data DIR --work DIR`.

train   for each NFE and each of three training seeds a table, from the default sampler, by backpropagation: pixels,
        the layers of the filter bank and of the first judge, and the pull of their features' distribution in real
        training pictures; training seeds have nothing in common
judge   other seeds of each table and of the rules: Frechet distance to the test set on the second judge's features,
        not trained on, and on the first's, trained on
report  bench/results/refined_fashion.json from what is in --work

What is in --work is not computed again; a run that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....engine.atomic import replacing
from ....engine.compiler.compile import compile as compile_program
from ....engine.compiler.program import Program
from ....engine.runtime.noise import noise
from ....export.network import Network
from ....export.sources.from_module import ModuleSource
from ....export.sources.module_call import Normalised
from ....export.zoo.fashion_data import load_fashion
from ....quality.distances.features import extractor
from ....quality.distances.metrics import FrechetDistance
from ....quality.perceptual.frechet_pull import FrechetPull
from ....quality.perceptual.layers import filter_bank, together
from ....quality.perceptual.named import layers_of
from ....quality.refining.aim import Aim
from ....quality.refining.descend import Descent, Plan
from ....quality.refining.options import PULL
from ....quality.refining.refine import finished
from ....quality.refining.through_module import ThroughModule

NFE, SEEDS = (4, 5, 6, 8), (0, 1, 2)
THIRD, JUDGED = 256, 10_000  # seeds of a training, and of a judgement
FIRST_TRAINING, FIRST_JUDGED = 1 << 24, 0
BLOCK = 100
STEPS, BATCH = 32, 32
RULES = {
    "ddim": ("ddim", "trailing", None, None),
    "default": ("auto", None, None, None),
    "dpm++:2m": ("dpm++:2m", "angle:power=1.25", None, None),
    "unipc": ("unipc:order=2", "angle:power=1.25", None, None),
    "ipndm": ("ipndm:order=3", "trailing", "x0", None),
}
TEACHER = ("dpm++:2m", "logsnr", 50)  # what FD at many evaluations is said of
RESULTS = Path(__file__).parents[2] / "results" / "refined_fashion.json"


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with Fashion-MNIST")
    parser.add_argument("--work", type=Path, required=True, help="where what is computed is kept")
    parser.add_argument("--part", choices=("train", "judge", "report", "all"), default="all")
    parser.add_argument("--nfe", type=int, nargs="+", default=NFE)
    parser.add_argument("--judged", type=int, default=JUDGED, help="seeds that judge, in thousands")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds if given.part != "report" else ():
        for nfe in given.nfe:
            if given.part in ("train", "all"):
                trained(given.work, given.data, nfe, seed)
            if given.part in ("judge", "all"):
                features_of(
                    given.work, given.judged, f"refined_{nfe}_{seed}", trained(given.work, given.data, nfe, seed)
                )
    if given.part in ("judge", "all"):
        for name, program in rules(given.nfe).items():
            features_of(given.work, given.judged, name, program)
    if given.part in ("report", "all"):
        report(given.work, given.data)


def compiled(solver: str, grid: Any, nfe: int, basis: str | None = None, t_start: float | None = None) -> Program:
    return compile_program(solver, "linear:1000", nfe, grid, basis, "v", t_start=t_start)


def rules(counts: Any) -> dict[str, Program]:
    found = {
        f"{name}_{nfe}": compiled(solver, grid, nfe, basis, start)
        for nfe in counts
        for name, (solver, grid, basis, start) in RULES.items()
    }
    solver, grid, nfe = TEACHER
    return {**found, "many": compiled(solver, grid, nfe)}


def through(program: Program, seeds: range) -> ThroughModule:
    """`fashion` on these seeds, labels in turn."""
    network = Network("fashion")
    source = network._source
    assert isinstance(source, ModuleSource)
    module = Normalised(source.module, source.call).eval()
    for one in module.parameters():
        one.requires_grad_(False)
    labels = torch.from_numpy(np.array(seeds) % 10)
    start = torch.from_numpy(noise(seeds, (1, 28, 28)).numpy())
    return ThroughModule(module, network.contract, program, start, [labels])


# Training.
REFERENCE = ("unipc:order=2", "angle:power=1.5", 36)


def reference(work: Path) -> Tensor:
    """Samples of REFERENCE, float32 [3 THIRD, 1, 28, 28], kept block by block."""
    solver, grid, nfe = REFERENCE
    program = compiled(solver, grid, nfe)
    firsts = range(FIRST_TRAINING, FIRST_TRAINING + 3 * THIRD, 128)
    return torch.cat([block(work / "reference_0", program, first) for first in firsts])


def block(folder: Path, program: Program, first: int) -> Tensor:
    path = folder / f"{first}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        x = sampled(through(program, range(first, first + 128)), program)
        with replacing(path) as part, part.open("wb") as file:
            np.save(file, x.numpy())
    return torch.from_numpy(np.load(path))


@torch.no_grad()
def sampled(run: ThroughModule, program: Program) -> Tensor:
    from ....quality.refining.dense import table_of

    table, times = torch.from_numpy(table_of(program)), torch.from_numpy(program.times.copy())
    rows = torch.arange(len(run.noise))
    return torch.cat([run.run(table, times, part) for part in rows.split(BLOCK)]).clamp(-1, 1)


def trained(work: Path, data: Path, nfe: int, seed: int) -> Program:
    path, state = work / f"refined_{nfe}_{seed}.json", work / f"state_{nfe}_{seed}.json"
    if path.exists():
        return Program.from_dict(json.loads(path.read_text())["program"])
    began, used = time.monotonic(), time.process_time()
    targets = reference(work)
    start = compiled("auto", None, nfe)
    run = through(start, range(FIRST_TRAINING, FIRST_TRAINING + 3 * THIRD))
    layers = together([filter_bank(1), layers_of("fashion", run.contract)])
    pixels, _ = load_fashion(data)
    real = torch.from_numpy(pixels[seed::6].copy())[:, None].float() / 127.5 - 1
    with torch.no_grad():
        phi = torch.cat([layers(part)[-1] for part in real.split(500)]).double().numpy()
    aim = Aim(targets, (-1.0, 1.0), layers, FrechetPull(phi), strength=PULL)
    training = np.arange(THIRD) + THIRD * seed
    validation = torch.arange(THIRD) + THIRD * ((seed + 1) % 3)

    def judge(program: Program) -> float:
        """The loss on the validation seeds, with the distance itself."""
        return aim.value(sampled(run_on(run, validation), program), validation)

    held = json.loads(state.read_text()) if state.exists() else None

    def keep(data: Any) -> None:
        with replacing(state) as part:
            part.write_text(json.dumps(data))
        print(
            f"NFE {nfe} seed {seed}: step {data['step']}, loss {np.mean(data['losses'][-10:]):.3f}, "
            f"checks {[round(one, 3) for one in data['checks']]}",
            flush=True,
        )

    descent = Descent(run, aim, training, judge, Plan(steps=STEPS, batch=BATCH, metric_seeds=16, seed=seed))
    program, last = descent.run(held, keep)
    program = finished(program, start.solver)
    record = {
        "program": program.to_dict(),
        "checks": last.checks,
        "buffers": program.buffers,
        "evaluations": run.evaluations,
        "seconds": time.monotonic() - began,
        "processor_seconds": time.process_time() - used,
    }
    with replacing(path) as part:
        part.write_text(json.dumps(record))
    print(f"NFE {nfe} seed {seed}: {last.checks} {record['seconds']:.0f} s", flush=True)
    return program


def run_on(run: ThroughModule, rows: Tensor) -> ThroughModule:
    given = [one[rows] for one in run.conditions]
    return ThroughModule(run.module, run.contract, run.program, run.noise[rows], given)


# Judging.
def features_of(work: Path, judged: int, name: str, program: Program) -> tuple[np.ndarray, np.ndarray]:
    """(first judge's, second judge's) features of so many seeds, kept by the thousand."""
    judges = [extractor("fashion"), extractor("fashion:second")]
    found: list[list[np.ndarray]] = [[], []]
    for first in range(FIRST_JUDGED, FIRST_JUDGED + judged, 1000):
        path = work / "features" / name / f"{first}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            x = sampled(through(program, range(first, first + 1000)), program)
            pixels = ((x + 1) * 127.5).round().to(torch.uint8).movedim(1, 3).numpy()
            with replacing(path) as part, part.open("wb") as file:
                np.savez(file, first=judges[0](pixels).pooled, second=judges[1](pixels).pooled)
            print(f"judged {name} {first}", flush=True)
        with np.load(path) as data:
            found[0].append(data["first"])
            found[1].append(data["second"])
    return np.concatenate(found[0]), np.concatenate(found[1])


def report(work: Path, data: Path) -> None:
    pixels, _ = load_fashion(data, "test")
    real = [extractor(name)(pixels[..., None]).pooled for name in ("fashion", "fashion:second")]
    distances = [FrechetDistance(one) for one in real]
    rows: dict[str, Any] = {}
    for folder in sorted((work / "features").iterdir()):
        parts = [np.load(path) for path in sorted(folder.glob("*.npz"), key=lambda path: int(path.stem))]
        if not parts:  # begun by another process
            continue
        both = [np.concatenate([part[name] for part in parts]) for name in ("first", "second")]
        made = work / f"{folder.name}.json"
        record = json.loads(made.read_text()) if made.exists() else {}
        rows[folder.name] = {
            "samples": len(both[0]),
            "fd_not_trained_on": distances[1](both[1]),
            "fd_trained_on": distances[0](both[0]),
            **{name: record[name] for name in ("buffers", "evaluations", "seconds", "processor_seconds") if record},
        }
    medians = {
        str(nfe): {
            name: statistics.median(rows[f"refined_{nfe}_{seed}"][name] for seed in SEEDS)
            for name in ("fd_not_trained_on", "fd_trained_on")
        }
        for nfe in NFE
        if all(f"refined_{nfe}_{seed}" in rows for seed in SEEDS)
    }
    RESULTS.write_text(json.dumps({"steps": STEPS, "medians": medians, "rows": rows}, indent=1) + os.linesep)
    print(json.dumps(medians, indent=1))
    for name, row in rows.items():
        print(name, row["samples"], f"{row['fd_not_trained_on']:.3f} {row['fd_trained_on']:.3f}")


if __name__ == "__main__":
    main()
