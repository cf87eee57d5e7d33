"""Peak memory of a large network's way into an engine: `python -m pfdiff.bench.studies.memory [--out FILE.json]`.

The U-Net of Stable Diffusion 1.5 (860 M parameters, random weights, float32) is saved as a diffusers folder; one
process builds the engine from it, another loads it and evaluates it once. Each reports its own largest resident set
(ru_maxrss), which is its life's, imports and comparison with the source included. Needs 8 GB of disk in --folder.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pfdiff

from ..measuring.machine import RESULTS, describe, folder_name

STEPS = ("save", "build", "sample")
WORDS: dict[str, Any] = {"schedule": "scaled_linear:1000", "prediction": "eps"}


def save(folder: Path) -> dict[str, Any]:
    """The class's own defaults are Stable Diffusion 1's but for the prompt's width."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    model = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    model.save_pretrained(folder / "unet")
    return {"parameters": sum(one.numel() for one in model.parameters())}


def build(folder: Path) -> dict[str, Any]:
    network = pfdiff.Network(folder / "unet", **WORDS)
    pfdiff.build(network, 1, "ddim", backend="onnxruntime", out=folder / "sd.engine").close()
    return {"files_bytes": {one.name: one.stat().st_size for one in sorted((folder / "sd.engine").glob("network*"))}}


def sample(folder: Path) -> dict[str, Any]:
    import torch

    with pfdiff.load(folder / "sd.engine", "cpu", "onnxruntime") as engine:
        x = engine.sample(seeds=[0], prompt_embeds=torch.zeros(77, 768))
    return {"sample": list(x.shape), "finite": bool(torch.isfinite(x).all())}


def measure(step: str, folder: Path) -> dict[str, Any]:
    """One step in a process of its own: its seconds and peak, and what the step says; kept in the folder."""
    kept = folder / f"{step}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    command = [sys.executable, "-m", "pfdiff.bench.studies.memory", "--folder", str(folder), "--step", step]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures = {"step": step, **json.loads(done.stdout.splitlines()[-1])}
    kept.write_text(json.dumps(figures))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file; default: memory.json of this machine")
    parser.add_argument("--folder", type=Path, help="kept, and steps done there are not repeated; default: temporary")
    parser.add_argument("--step", choices=STEPS, help="this one alone, here")
    given = parser.parse_args()
    if given.step:
        start = time.perf_counter()
        said = {"save": save, "build": build, "sample": sample}[given.step](given.folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps({"seconds": round(time.perf_counter() - start, 1), "peak_bytes": peak, **said}))
        return
    out = given.out or RESULTS / folder_name() / "memory.json"
    with tempfile.TemporaryDirectory() as temporary:
        figures = [measure(step, given.folder or Path(temporary)) for step in STEPS]
    for one in figures:
        print(f"{one['step']}: {one['peak_bytes'] / 2**30:.2f} GiB, {one['seconds']} s")
    what = "UNet2DConditionModel of Stable Diffusion 1.5, random weights, fp32, onnxruntime, one evaluation at batch 1"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": describe(), "network": what, "figures": figures}, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
