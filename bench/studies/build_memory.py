"""Peak memory of a whole pipeline in a build: `python -m pfdiff.bench.studies.build_memory [--out FILE.json]`.

A pipeline like Stable Diffusion XL of middle size, random weights in fp16 files, is built by the command line's own
code, in fp32 and in fp16, each in a process of its own. With several --channels it is made in several sizes; 1920 gives
a U-Net of 2.8 G parameters, where that of Stable Diffusion XL has 2.6 G. Every stage, from one line of progress to
the next, reports its largest resident set (VmHWM, reset between them; Linux).
`export/pipelines/memory.py` takes its factors from here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ...export.pipelines.memory import Need
from ..measuring.machine import RESULTS, describe, folder_name

PRECISIONS = ("fp32", "fp16")
MIB = 1 << 20


def save(folder: Path, channels: int, side: int = 16) -> dict[str, int]:
    """The pipeline's folder, and how many parameters each part has. channels: of the U-Net's first block.

    side: of a latent. Half precisions take long on a CPU, by its square.
    """
    import torch

    diffusers: Any = import_module("diffusers")
    transformers: Any = import_module("transformers")
    torch.set_num_threads(1)
    blocks: dict[str, Any] = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
    blocks |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    unet = diffusers.UNet2DConditionModel(
        sample_size=side,
        block_out_channels=(channels, 2 * channels),
        cross_attention_dim=8 * channels // 5,
        layers_per_block=1,
        **blocks,
    )
    ends: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    vae = diffusers.AutoencoderKL(block_out_channels=(64, 128, 256, 256), latent_channels=4, layers_per_block=1, **ends)
    words = [*"abcdefghijklmnopqrstuvwxyz", *(f"{one}</w>" for one in "abcdefghijklmnopqrstuvwxyz")]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    sizes: dict[str, Any] = {
        "hidden_size": 8 * channels // 5,
        "intermediate_size": 32 * channels // 5,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
    }
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(vocab_size=49408, **sizes, bos_token_id=52, eos_token_id=53)
    )
    pipeline = diffusers.StableDiffusionPipeline(
        vae, text, tokenizer, unet, diffusers.DDIMScheduler(), None, None, requires_safety_checker=False
    )
    pipeline.to(torch.float16).save_pretrained(folder / "pipeline")
    parts = {"unet": unet, "vae": vae, "text_encoder": text}
    return {name: sum(one.numel() for one in part.parameters()) for name, part in parts.items()}


def build(folder: Path, precision: str) -> list[dict[str, Any]]:
    """The stages of a build with the peak of each."""
    from ...export.build import built
    from ...export.network import Network

    stages: list[dict[str, Any]] = []

    def stage(line: str) -> None:
        if stages:
            stages[-1]["peak_bytes"] = _peak()
        stages.append({"stage": line.replace(str(folder), "")})
        Path("/proc/self/clear_refs").write_text("5")

    stage("reading the pipeline")
    network = Network(folder / "pipeline").disposable()
    words: dict[str, Any] = {"solver": "ddim", "precision": precision, "backend": "onnxruntime", "device": "cpu"}
    built(network, 1, **words, progress=stage, out=folder / f"{precision}.engine")
    stages[-1]["peak_bytes"] = _peak()
    return stages


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / folder_name() / "build_memory.json")
    parser.add_argument("--folder", type=Path, help="where the pipeline and the engines go; kept; a temporary one")
    parser.add_argument("--channels", type=int, nargs="+", default=[640], help="multiples of 160")
    parser.add_argument("--side", type=int, default=16, help="of a latent")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--precision", choices=PRECISIONS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.precision:
        print(json.dumps(build(given.folder, given.precision)))
        return
    sizes: list[dict[str, Any]] = []
    for channels in given.channels:
        with tempfile.TemporaryDirectory() as made:
            folder = (given.folder or Path(made)) / str(channels)
            sizes.append(measure(folder, channels, given.side, given.precisions))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"machine": describe(), "sizes": sizes}, indent=1) + "\n")


def measure(folder: Path, channels: int, side: int, precisions: Sequence[str]) -> dict[str, Any]:
    """Stages and estimates of each precision for one size of pipeline."""
    folder.mkdir(parents=True)
    parameters = save(folder, channels, side)
    need = Need(parameters["unet"], parameters["vae"], {"text_encoder": parameters["text_encoder"]})
    figures: dict[str, Any] = {"channels": channels, "side": side, "parameters": parameters}
    for precision in precisions:
        own = ["--folder", str(folder), "--precision", precision]
        command = [sys.executable, "-m", "pfdiff.bench.studies.build_memory", *own]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        stages = json.loads(done.stdout.splitlines()[-1])
        peak = max(one["peak_bytes"] for one in stages)
        figures[precision] = {"estimate_bytes": need.bytes(precision), "peak_bytes": peak, "stages": stages}
        for one in stages:
            print(f"{channels} {precision} {one['stage']}: {one['peak_bytes'] / MIB:.0f} MiB", flush=True)
    return figures


if __name__ == "__main__":
    main()
