"""What each precision costs and gains: errors of an evaluation and of samples, Frechet distance, time.

    python -m pfdiff.bench.studies.precision --work DIR [--data DIR] [--dit small_dit.pt] [--only fashion unet]

fashion  the shipped network (conditions: a class), MNIST: a third party's ONNX file, unet: 36 M parameters with random
weights (measuring/networks.py), dit: a transformer (small_dit.py). Engines of NFE 5 and 8 in fp32, bf16, fp16 and int8
are built in DIR with `pfdiff.build`, one after the other; what is there is not built again.

evaluation   relative error of one evaluation by the engine's backend, on inputs of trajectories of seeds that nothing
             was calibrated on; cast: the same of the module cast by PyTorch (not of the U-Net: hours)
added        RMS of samples in the precision to those in fp32, 16 seeds; own: of fp32 to many evaluations
FD           on a classifier's features to the test set, `count` samples
ms           CPU time of an evaluation of batch 1 and of batch 8 by every backend, one thread, the least of turns in
             one run: the clock on the wall would also count whatever else the machine does
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...engine.artifact import Artifact, read_artifact
from ...engine.backends.abstract import Backend, Buffers, NetworkFiles
from ...engine.backends.registry import open_backend
from ...engine.errors import BackendError, InputError
from ...engine.machine import processor, version_of
from ...export.build import build
from ...export.check import Array, TrialInputs
from ...export.choice.measured_choice import reference_of
from ...export.engine_directory import write_programs
from ...export.network import Network
from ...export.precision.trajectory import CHECK_SEED, Trajectories, relative_error
from ...export.precision.write import Asked
from ...export.sources.from_module import ModuleSource

NFE = (5, 8)
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
BACKENDS = ("onnxruntime", "openvino")
SEEDS, TRIALS = {"unet": 2}, 2  # samples of a network, 16 where nothing is said; those of single evaluations
USUAL_SEEDS = 16
# What refining may spend: (seeds that choose, seeds that judge, evaluations of a sample); fashion has no limit.
REFINING: dict[str, tuple[int, int, int | None]] = {"mnist": (8, 16, 16_000), "unet": (2, 2, 1_500)}
USUAL_REFINING = (8, 16, None)
TURNS = 9
MNIST = "mnist28_ddpm_cosine60_eps.onnx"
RESULTS = Path(__file__).parents[1] / "results" / "precision.json"


def networks(data: Path | None, dit: Path | None) -> dict[str, Callable[[], Network]]:
    """The networks that can be had."""
    found: dict[str, Callable[[], Network]] = {"fashion": lambda: Network("fashion")}
    if data is not None and (data / MNIST).exists():
        found["mnist"] = lambda: Network(
            data / MNIST, schedule="cosine:60?beta_max=0.999", prediction="eps", name="mnist"
        )
    if dit is not None and dit.exists():
        found["dit"] = lambda: _dit(dit)
    found["unet"] = _unet
    return found


def _unet() -> Network:
    from ..measuring.networks import CIFAR, UNet

    torch.manual_seed(0)
    return Network(UNet(CIFAR), shape=(3, 32, 32), schedule="linear:1000", prediction="v", name="unet")


def _dit(path: Path) -> Network:
    from .small_dit import PREDICTION, SCHEDULE, SHAPE, load

    return Network(load(path), shape=SHAPE, schedule=SCHEDULE, prediction=PREDICTION, name="dit")


# Running.
def opened(artifact: Artifact, name: str) -> Backend:
    """One thread."""
    return open_backend(name, NetworkFiles(artifact.network_path, artifact.contract, None, artifact), 1)


def evaluator(backend: Backend, artifact: Artifact, size: int) -> Callable[[TrialInputs], Array]:
    """evaluate(case) of `size` samples by a backend."""
    buffers = Buffers.of(artifact.contract, size, backend.dtype)
    (run,) = backend.bind([buffers])

    def evaluate(case: TrialInputs) -> Array:
        for buffer, value in zip(buffers.inputs, case.inputs, strict=True):
            buffer.copy_(torch.from_numpy(np.ascontiguousarray(value)))
        return run().float().numpy().copy()

    return evaluate


def milliseconds(artifacts: dict[str, Artifact], size: int) -> dict[str, dict[str, float]]:
    """Of an evaluation by precision and backend, all in turn."""
    runs: dict[tuple[str, str], Callable[[], Any]] = {}
    keep: list[Any] = []
    for precision, artifact in artifacts.items():
        for name in BACKENDS:
            try:
                backend = opened(artifact, name)
            except (BackendError, InputError):
                continue
            buffers = Buffers.of(artifact.contract, size, backend.dtype)
            keep += [backend, buffers]
            buffers.x.normal_()
            (runs[precision, name],) = backend.bind([buffers])
            runs[precision, name]()
    times = dict.fromkeys(runs, np.inf)
    for key in [*runs] * TURNS:
        time.sleep(0.03)
        runs[key]()
        for _ in range(3):
            start = time.process_time()
            runs[key]()
            times[key] = min(times[key], 1e3 * (time.process_time() - start))
    found: dict[str, dict[str, float]] = {}
    for (precision, name), value in times.items():
        found.setdefault(precision, {})[name] = round(value, 3)
    return found


# The study of one network.
def measured(
    name: str, network: Network, work: Path, say: Callable[[str], None], precisions: Sequence[str] = PRECISIONS
) -> dict[str, Any]:
    """Everything but distances; of some precisions, fp32 among them, without times."""
    artifacts: dict[str, Artifact] = {}
    program: dict[int, Any] = {}
    for precision in precisions:
        place = work / f"{name}-{precision}.engine"
        if (place / "engine.json").exists():
            artifacts[precision] = read_artifact(place)
        else:
            if precision == "fp32":
                build(network, NFE, out=place).close()
            else:  # the same samplers in every precision
                asked, options = Asked(program), {"precision": precision, "batch": (1,), "replaces": True}
                write_programs(place, network, program, asked=asked, say=lambda line: None, **options)
            artifacts[precision] = read_artifact(place)
        program = dict(artifacts["fp32"].programs)
        say(f"{name} {precision} is built")
    first = artifacts["fp32"]
    seeds = SEEDS.get(name, USUAL_SEEDS)
    check = Trajectories.of(first.contract, CHECK_SEED, seeds)
    few = Trajectories.of(first.contract, CHECK_SEED, TRIALS)
    backends = {precision: opened(one, _best(one)) for precision, one in artifacts.items()}
    exact = evaluator(backends["fp32"], first, seeds)
    exact_few = evaluator(backends["fp32"], first, TRIALS)
    cases = few.inputs(first.programs, exact_few)
    wanted = [exact_few(case) for case in cases]
    samples = {nfe: check.sample(one, exact) for nfe, one in first.programs.items()}
    own = {nfe: check.own_error(one, exact, samples[nfe]) for nfe, one in first.programs.items()}
    found: dict[str, Any] = {"samplers": {n: f"{p.solver} on {p.grid}" for n, p in first.programs.items()}, "own": own}
    found["seeds"] = seeds
    for precision, artifact in artifacts.items():
        if precision == "fp32":
            continue
        short, short_few = (evaluator(backends[precision], artifact, size) for size in (seeds, TRIALS))
        record: dict[str, Any] = {
            "backend": backends[precision].name,
            "evaluation": relative_error([short_few(case) for case in cases], wanted),
            "added": {n: check.distance(check.sample(p, short), samples[n]) for n, p in first.programs.items()},
            "record": {k: v for k, v in artifact.provenance.get("precision_record", {}).items() if k != "programs"},
        }
        if isinstance(network._source, ModuleSource) and precision in ("bf16", "fp16") and name != "unet":
            source = network._source
            record["cast"] = relative_error([source.evaluate(case, precision) for case in cases], wanted)
        found[precision] = record
        say(f"{name} {precision} is compared")
    if precisions == PRECISIONS:
        found["ms"] = {str(size): milliseconds(artifacts, size) for size in (1, 8)}
    return found


def _best(artifact: Artifact) -> str:
    return "openvino" if artifact.precision in ("bf16", "int8") else "onnxruntime"


def distances(name: str, work: Path, data: Path, count: int, precisions: Sequence[str] = PRECISIONS) -> dict[str, Any]:
    """FD of every engine by NFE, on the features of a classifier of the data."""
    from ...quality.evaluate import evaluate

    features, pictures = {
        "fashion": ("fashion", data / "fashion_mnist_test_uint8.npz"),
        "mnist": (str(data / "mnist28_classifier.onnx"), data / "mnist_test_uint8.npz"),
    }[name]
    scale = (-1.0, 1.0) if name == "fashion" else (0.0, 1.0)
    with np.load(pictures) as held:
        real = held["x"]
    found: dict[str, Any] = {"count": count}
    for precision in precisions:
        place = work / f"{name}-{precision}.engine"
        for nfe in NFE:
            report = evaluate(place, real, features=features, nfe=nfe, count=count, scale=scale, threads=1)
            found.setdefault(precision, {})[str(nfe)] = round(report.distance, 4)
    return found


def refined(name: str, work: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The engine's samplers by NFE, on the int8 network as they are and polished on it.

    Errors: RMS of samples of seeds that nothing was calibrated or refined on, to float32's many evaluations. seconds:
    of one core.
    """
    from ...quality.tune import tune

    exact, short = (read_artifact(work / f"{name}-{one}.engine") for one in ("fp32", "int8"))
    count = SEEDS.get(name, USUAL_SEEDS)
    calibration, held_out, budget = REFINING.get(name, USUAL_REFINING)
    check = Trajectories.of(exact.contract, CHECK_SEED, count)
    evaluate = evaluator(opened(exact, "onnxruntime"), exact, count)
    evaluate_short = evaluator(opened(short, _best(short)), short, count)
    found: dict[str, Any] = {"seeds": count, "calibration": calibration, "held_out": held_out, "budget": budget}
    for nfe, first in exact.programs.items():
        truth = check.sample(reference_of(first), evaluate)
        words: dict[str, Any] = {"solvers": [first.solver], "grids": [first.grid], "bases": [first.basis]}
        words |= {"t_start": first.t_start, "local": False, "refine": True, "budget": budget}
        words |= {"calibration": calibration, "held_out": held_out}
        start = time.process_time()
        ranking = tune(short.path, nfe, backend=_best(short), threads=1, **words)
        found[str(nfe)] = one = {
            "sampler": f"{first.solver} on {first.grid}",
            "fp32": check.distance(check.sample(first, evaluate), truth),
            "int8": check.distance(check.sample(first, evaluate_short), truth),
            "refined": check.distance(check.sample(ranking[0].program, evaluate_short), truth),
            "seconds": round(time.process_time() - start),
        }
        say(f"{name}: NFE {nfe} refined: {one['refined']:.4f}, int8 {one['int8']:.4f}, fp32 {one['fp32']:.4f}")
    return found


REFINED = ("fp32", "int8", "refined")


def refined_rows(held: dict[str, Any]) -> list[str]:
    """The table of what refining takes back, a line for each network and NFE."""
    lines: list[str] = []
    for name in ("fashion", "mnist", "unet"):
        for nfe in NFE if "refined" in held.get(name, {}) else ():
            one = held[name]["refined"][str(nfe)]
            lines.append(f"| {name} | {nfe} | {' | '.join(f'{one[what]:.3g}' for what in REFINED)} |")
    return lines


def bias_rows(held: dict[str, Any]) -> list[str]:
    """The table of what biases change that take back mean errors, from "biases", a line for each network and NFE."""
    lines: list[str] = []
    for name in ("fashion", "mnist", "dit", "unet"):
        for nfe in NFE:
            one = held["biases"][name][str(nfe)]
            cells = [f"{one['added'][which]:.3g}" for which in ("without", "with")]
            distances = (*one["FD"].values(), one["FD_fp32"]) if "FD" in one else ()
            cells += [f"{value:.3g}" for value in distances] or ["-"] * 3
            lines.append(f"| {name} | {nfe} | {' | '.join(cells)} |")
    return lines


def rows(held: dict[str, Any]) -> list[str]:
    """The table of docs/guides/precision.md, a line for each network and precision."""
    lines: list[str] = []
    for name in ("fashion", "mnist", "dit", "unet"):
        for precision in ("bf16", "fp16", "int8"):
            if name not in held or precision not in held[name]:
                continue
            one = held[name][precision]
            added = (f"{one['added'][str(nfe)]:.2g}" for nfe in NFE)
            own = (f"{held[name]['own'][str(nfe)]:.2g}" for nfe in NFE)
            times = (f"{_gain(held[name]['ms'][size], precision):.2f}" for size in ("1", "8"))
            cast = f"{one['cast']:.1e}" if "cast" in one else "-"
            cells = (name, precision, f"{one['evaluation']:.1e}", cast, *added, *own, *times)
            lines.append(f"| {' | '.join(cells)} | - |")
    return lines


def _gain(times: dict[str, dict[str, float]], precision: str) -> float:
    """Times faster than fp32, each by its best library."""
    return min(times["fp32"].values()) / min(times[precision].values())


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where engines are built, and kept")
    parser.add_argument("--data", type=Path, help="folder with the MNIST network and the pictures")
    parser.add_argument("--dit", type=Path, help="what small_dit has trained")
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--count", type=int, default=1000, help="samples of an FD; 0 for none")
    parser.add_argument("--refine", action="store_true", help="also refine the int8 engines' samplers")
    parser.add_argument("--again", choices=PRECISIONS[1:], help="compare a precision again, with fp32 of that run")
    parser.add_argument("--times", action="store_true", help="measure the times again, of engines that are there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    held: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    held["machine"] = {"processor": processor(), "threads": 1}
    held["machine"] |= {name: version_of(name) for name in ("onnxruntime", "openvino", "torch")}
    say = lambda line: print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)  # noqa: E731  # one line
    for name, make in networks(given.data, given.dit).items():
        if given.only and name not in given.only:
            continue
        if given.times and name in held:
            places = {one: given.work / f"{name}-{one}.engine" for one in PRECISIONS}
            artifacts = {one: read_artifact(place) for one, place in places.items()}
            held[name]["ms"] = {str(size): milliseconds(artifacts, size) for size in (1, 8)}
            given.out.write_text(json.dumps(held, indent=1) + "\n")
        if given.again and name in held:
            some = ("fp32", given.again)
            held[name] |= measured(name, make(), given.work, say, some)
            if "FD" in held[name] and given.count:
                held[name]["FD"] |= distances(name, given.work, given.data, given.count, (given.again,))
            if given.again == "int8" and given.refine:
                held[name].pop("refined", None)
            given.out.write_text(json.dumps(held, indent=1) + "\n")
        if name not in held:
            held[name] = measured(name, make(), given.work, say)
            given.out.write_text(json.dumps(held, indent=1) + "\n")
        if given.count and given.data and name in ("fashion", "mnist") and "FD" not in held[name]:
            held[name]["FD"] = distances(name, given.work, given.data, given.count)
            given.out.write_text(json.dumps(held, indent=1) + "\n")
            say(f"{name}: distances are measured")
        if given.refine and "refined" not in held[name]:
            held[name]["refined"] = refined(name, given.work, say)
            given.out.write_text(json.dumps(held, indent=1) + "\n")


if __name__ == "__main__":
    main()
