"""Where the time of a build goes: `python -m pfdiff.bench.studies.build_seconds [--before FOLDER]`.

A tiny Stable Diffusion (U-Net and autoencoder, random weights) is built by the command line, each time in a process of
its own. Seconds are those of the processor, user and system, since the wall clock of a busy machine says little.
--before: the folder that holds another checkout named pfdiff. Both build in turns, and the ratio of each round is kept.
The parts are seconds inside one function each, from one further build.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ..measuring.machine import RESULTS, ROOT, describe, folder_name

# Module and function of what a build imports, each counted without those before it, and of what it then does.
LEAN = "pfdiff.export.pipelines.lean_imports"
IMPORTS = {
    "import torch.export and onnxscript": (LEAN, "import_exporter"),
    "import diffusers and transformers": (LEAN, "import_pipeline"),
}
PARTS = {
    "trace (torch.export)": ("torch.export", "export"),
    "table of ONNX functions": ("torch.onnx._internal.exporter._registration", "ONNXRegistry.from_torchlib"),
    "mixed dtypes": ("torch.onnx._internal.exporter._fx_passes", "insert_type_promotion_nodes"),
    "translation to ONNX": ("torch.onnx._internal.exporter._core", "_exported_program_to_onnx_program"),
    "optimiser": ("torch.onnx._internal.exporter._onnx_program", "ONNXProgram.optimize"),
    "comparison with PyTorch": ("pfdiff.export.sources.from_module", "check_export"),
    "comparison of the decoder": ("pfdiff.export.decoders.from_module", "check_export"),
    "loading the engine": ("pfdiff.engine.api", "Engine.open"),
}


def save(folder: Path) -> None:
    """The pipeline's folder."""
    diffusers: Any = import_module("diffusers")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        cross_attention_dim=8,
        attention_head_dim=4,
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    ends = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4, **ends)
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    scheduler = diffusers.DDIMScheduler(**betas, clip_sample=False, steps_offset=1)
    parts = {"unet": unet, "vae": vae, "scheduler": scheduler, "text_encoder": None, "tokenizer": None}
    parts |= {"safety_checker": None, "feature_extractor": None}
    pipeline = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipeline.save_pretrained(folder)


def seconds_of_a_build(root: Path, pipeline: Path, work: Path, words: Sequence[str]) -> float:
    """Processor seconds of `pfdiff build` with the package in `root`."""
    command = [sys.executable, "-m", "pfdiff", "build", str(pipeline), "--nfe", "5", *words]
    environment = {**os.environ, "PYTHONPATH": str(root), "XDG_CACHE_HOME": str(work / "cache"), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(dir=work) as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([*command, "-o", f"{folder}/e.engine"], env=environment, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def parts_of_a_build(pipeline: Path, work: Path) -> dict[str, float]:
    """Processor seconds by part, in this process, which must be fresh."""
    spent = {"Python and torch": time.process_time()}

    def counted(label: str, function: Any) -> Any:
        def wrapped(*given: Any, **words: Any) -> Any:
            start = time.process_time()
            try:
                return function(*given, **words)
            finally:
                spent[label] = spent.get(label, 0.0) + time.process_time() - start

        return wrapped

    gc.disable()  # as the command does
    for label, (module, name) in IMPORTS.items():
        counted(label, getattr(import_module(module), name))()
    gc.freeze()
    gc.enable()
    for label, (module, name) in PARTS.items():
        *owners, last = name.split(".")
        owner: Any = import_module(module)
        for one in owners:
            owner = getattr(owner, one)
        kept = isinstance(vars(owner).get(last), (staticmethod, classmethod))
        function = counted(label, getattr(owner, last))
        setattr(owner, last, staticmethod(function) if kept else function)
    import_module("pfdiff.cli").main(["build", str(pipeline), "--nfe", "5", "--no-encoders", "-o", f"{work}/p.engine"])
    total = time.process_time()
    return {**spent, "everything else": total - sum(spent.values()), "all": total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / folder_name() / "build_seconds.json")
    parser.add_argument("--before", type=Path, help="the folder that holds another checkout named pfdiff")
    parser.add_argument("--before-words", nargs="*", default=[], help="its options of build, besides --nfe and -o")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        if given.parts:
            print(json.dumps(parts_of_a_build(given.parts, work)))
            return
        save(pipeline := work / "pipeline")
        rounds: list[dict[str, float]] = []
        for _ in range(given.rounds):
            one = {"now": seconds_of_a_build(ROOT.parent, pipeline, work, ["--no-encoders"])}
            if given.before:
                one["before"] = seconds_of_a_build(given.before, pipeline, work, given.before_words)
                one["ratio"] = one["now"] / one["before"]
            rounds.append(one)
            print(one, flush=True)
        command = [sys.executable, "-m", "pfdiff.bench.studies.build_seconds", "--parts", str(pipeline)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        parts = json.loads(done.stdout.splitlines()[-1])
    figures: dict[str, Any] = {"machine": describe(), "rounds": rounds, "parts": parts}
    if given.before:
        figures["ratio"] = statistics.median(one["ratio"] for one in rounds)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(figures, indent=1) + "\n")
    for label, value in parts.items():
        print(f"{value:6.2f} s  {label}")


if __name__ == "__main__":
    main()
