"""Precisions of somebody else's large ONNX file: `python -m pfdiff.bench.studies.foreign_unet --work DIR`.

A U-Net of 62 M parameters with random weights is exported by torch.onnx itself, as anybody would, and built by
`pfdiff build` in processes of their own: fp16, int8 and fp8 with TensorRT-RTX plans for sm89 and sm120, without a GPU,
and `auto` for this CPU. Recorded are what the build found, the bytes of its plans, its processor time and its memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ...engine.artifact import read_artifact
from ..measuring.machine import RESULTS, describe
from ..measuring.networks import Shape, UNet, parameters

SHAPE = Shape(3, (160, 320, 320, 352), attention=(1, 2))
WORDS = ("--shape", "3x32x32", "--schedule", "linear:1000", "--prediction", "eps", "--nfe", "5")
PLANS = ("--target", "sm89,sm120")
BUILDS: dict[str, tuple[str, ...]] = {
    "fp16": ("--precision", "fp16", *PLANS),
    "int8": ("--precision", "int8", *PLANS),
    "fp8": ("--precision", "fp8", *PLANS),
    "auto on this CPU": ("--precision", "auto"),
}
LEFT_OUT = ("programs", "float32_nodes", "too_small", "given_back")  # of a record: lists of names


def write(path: Path) -> int:
    """The ONNX file, unless it is there; how many parameters it has."""
    import torch

    torch.manual_seed(1)
    network = UNet(SHAPE).eval()
    x, t = torch.randn(2, *(3, 32, 32)), torch.tensor([500.0, 20.0])
    with torch.no_grad():
        factor = 1 / network(x, t).std()
        network.head.weight *= factor
        network.head.bias *= factor
    if not path.exists():
        batch = torch.export.Dim("b", min=1, max=64)
        words: dict[str, Any] = {"input_names": ["x", "t"], "output_names": ["eps"], "dynamo": True}
        words |= {"external_data": False, "dynamic_shapes": ({0: batch}, {0: batch})}
        torch.onnx.export(network, (x, torch.tensor([5.0, 9.0])), str(path), **words)
    return parameters(network)


def built(file: Path, place: Path, words: tuple[str, ...]) -> dict[str, Any]:
    """Builds with one thread; {} where the engine is there already."""
    if (place / "engine.json").exists():
        return {}
    command = [sys.executable, "-m", "pfdiff", "build", str(file), *WORDS, *words, "-o", str(place)]
    start = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} fails")
    return {
        "cpu_seconds": round(used.ru_utime + used.ru_stime),
        "seconds": round(time.monotonic() - start),
        "peak_gib": round(used.ru_maxrss / 2**20, 1),
    }


def found(place: Path) -> dict[str, Any]:
    """What an engine remembers of its precision, and its plans."""
    artifact = read_artifact(place)
    row: dict[str, Any] = {"precision": artifact.precision}
    row |= {key: value for key, value in artifact.provenance.items() if key.endswith(" inside")}
    record = artifact.provenance.get("precision_record", {})
    row["record"] = {key: value for key, value in record.items() if key not in LEFT_OUT}
    if choice := artifact.provenance.get("precision_choice"):
        row["choice"] = choice
    plans = sorted(place.glob("plans/*.plan"))
    if plans:
        row["plan_bytes"] = {
            next(one for one in plan.name.split("-") if one[:2] == "sm"): plan.stat().st_size for plan in plans
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where the file and the engines are, and stay")
    parser.add_argument("--only", nargs="+", choices=list(BUILDS), default=list(BUILDS))
    parser.add_argument("--out", type=Path, default=RESULTS / "foreign_unet.json")
    given = parser.parse_args()
    held: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {"builds": {}}
    file = given.work / "unet63.onnx"
    held["machine"], held["parameters"] = describe(), write(file)
    for name in given.only:
        place = given.work / f"{name.split()[0]}.engine"
        row = built(file, place, BUILDS[name])
        held["builds"][name] = {**held["builds"].get(name, {}), **found(place), **row}
        given.out.write_text(json.dumps(held, indent=1) + "\n")


if __name__ == "__main__":
    main()
