"""The options that several commands share: of a network, of a program, of where it runs.

A network's own conditions, such as `--label 3`, are no fixed options: conditions.py reads them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer


def shortened(text: str, most: int = 60) -> str:
    """The text as it stands in a message: a long one keeps its beginning."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def integer(given: str | int) -> int:
    """A positive integer, or a usage error that says what was got. Typer passes defaults through here too."""
    text = str(given)
    if not (re.fullmatch(r"[0-9]{1,10}", text) and 0 < int(text) < 2**31):
        raise typer.BadParameter(f"got '{shortened(text)}', expected a positive integer")
    return int(text)


def natural(given: str | int) -> int:
    """An integer of at least 0, or a usage error that says what was got."""
    text = str(given)
    if not re.fullmatch(r"[0-9]{1,20}", text):
        raise typer.BadParameter(f"got '{shortened(text)}', expected an integer of at least 0")
    return int(text)


def number(text: str) -> float:
    """A number, or a usage error that says what was got."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"got '{shortened(text)}', expected a number") from None


def parsed(parser: Callable[[str], float], name: str, help: str) -> Any:
    """The option of a number, read by `number`, `integer` or `natural`."""
    return typer.Option(name, parser=parser, metavar="<float>" if parser is number else "<int>", help=help)


def valued(metavar: str, name: str, help: str) -> Any:
    """An option whose value --help shows as `metavar`."""
    return typer.Option(name, metavar=metavar, help=help)


# Prompts, of what draws many samples.
Prompts = Annotated[
    list[str] | None, valued("<str>", "--prompt", "Of engines with text encoders; of m, seed s has number s mod m.")
]
NegativePrompts = Annotated[list[str] | None, valued("<str>", "--negative-prompt", "One, or as many as --prompt.")]


# The network.
NetworkArgument = Annotated[
    str,
    typer.Argument(
        metavar="NETWORK",
        help="An .onnx file, a diffusers folder, owner/name of the hub, file.py:factory (returns an nn.Module), "
        "or 'fashion'.",
    ),
]
Shape = Annotated[str | None, typer.Option("--shape", help="Of one sample, such as 3x64x64.")]
Schedule = Annotated[str | None, typer.Option("--schedule", help="linear:1000, cosine:300, vp, edm, flow, ...")]
Prediction = Annotated[str | None, typer.Option("--prediction", help="eps, x0, v, flow, edm or consistency.")]
InputName = Annotated[str | None, typer.Option("--input", help="Name of the noisy sample's input.")]
TimeName = Annotated[str | None, typer.Option("--time", help="Name of the time's input.")]
OutputName = Annotated[str | None, typer.Option("--output", help="Name or index of the prediction's output.")]
ConditionOption = Annotated[
    list[str] | None,
    valued("<str>", "--condition", "A further input: name:dtype, then :77x768, :0..9, =default if any; repeatable."),
]
TimeScale = Annotated[float | None, parsed(number, "--time-scale", "The network is fed t times this; default: 1.")]
TimeMap = Annotated[
    str | None, typer.Option("--time-map", help="What it is fed instead: 1-t, 1000-1000*t, sigma, 0.5*logsnr, c_noise.")
]
TimeDtype = Annotated[str | None, typer.Option("--time-dtype", help="float32 or int64; found by trying.")]
LearnedSigma = Annotated[bool, typer.Option("--learned-sigma", help="The output's second half is a variance.")]
SigmaData = Annotated[float | None, parsed(number, "--sigma-data", "Of edm networks; default: 0.5.")]
DataRange = Annotated[
    str | None, valued("LOW,HIGH", "--data-range", "What becomes 0 and 255 in pictures; default: -1,1.")
]
Guidance = Annotated[
    str | None,
    typer.Option(
        "--guidance", help="label=10[,scale=2], context=input, or classifier=FILE.py:LOAD; its scale is an input."
    ),
]
DecoderOption = Annotated[
    str | None, typer.Option("--decoder", help="Of latents: FILE.py:FACTORY or FILE.onnx[,scaling=0.18215,...].")
]

LoraOption = Annotated[
    list[str] | None,
    valued("FILE", "--lora", "Of a pipeline: FILE.safetensors[:0.8], fused into its weights; repeatable."),
]
ControlnetOption = Annotated[
    list[str] | None, valued("FOLDER", "--controlnet", "Of a pipeline: FOLDER[:0.8]; its picture is --control_image.")
]
NoEncoders = Annotated[bool, typer.Option("--no-encoders", help="Leave out text encoders and image encoder.")]

# The programs.
EvaluationsList = Annotated[str, typer.Option("--nfe", help="Network evaluations a sample, one or several: 5,8.")]
Solver = Annotated[str, typer.Option("--solver", help="auto, or ddim, dpm++:2m, pfdiff:k=2,l=1, ...")]
GridOption = Annotated[
    str | None,
    typer.Option(
        "--grid", help="uniform, angle, ..., diffusers (its scheduler's times), or all times; by default by rule."
    ),
]
Basis = Annotated[str | None, typer.Option("--basis", help="What the solver combines: eps, x0 or v.")]
Clip = Annotated[str | None, valued("<float>", "--clip", "Clamp x0 to [-CLIP, CLIP]; data: to the data's own range.")]
StartTime = Annotated[float | None, parsed(number, "--t-start", "Where the grid starts.")]

EndTime = Annotated[
    str | None, typer.Option("--end", help="clean, first or a time; default: a diffusers scheduler's, else clean.")
]

# The engine and where it runs.
EngineArgument = Annotated[Path, typer.Argument(metavar="ENGINE", help="The engine directory that 'build' wrote.")]
EngineOut = Annotated[Path | None, typer.Option("--out", "-o", help="The engine directory; default: NAME.engine.")]
Batch = Annotated[str | None, typer.Option("--batch", help="Batch sizes, 1,8; default: the engine's, else 1.")]
Precision = Annotated[
    str, typer.Option("--precision", help="fp32, fp16, bf16, int8, fp8; auto: the fastest here within the bound.")
]
CalibratePrompts = Annotated[
    Path | None, valued("FILE", "--calibrate-prompts", "A prompt a line, for int8, fp8 and auto of a pipeline.")
]
CalibrateConditions = Annotated[
    Path | None,
    typer.Option(
        "--calibrate-conditions",
        metavar="FILE",
        help="Values of conditions or a policy's observations, .npz, .safetensors or .npy, for int8, fp8 and auto.",
    ),
]
QuantiseError = Annotated[
    float | None,
    parsed(
        number,
        "--quantise-error",
        "RMS that int8, fp8 and auto may add to samples; default: half of the sampler's own error.",
    ),
]
Backend = Annotated[
    str, typer.Option("--backend", help="auto, tensorrt, tensorrt_rtx, torch, onnxruntime or openvino.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Target = Annotated[
    str | None, valued("LIST", "--target", "Also TensorRT-RTX plans for these GPUs, sm86,sm89; none is needed.")
]
Threads = Annotated[int | None, parsed(integer, "--threads", "CPU threads; default: what the backend picks.")]
Evaluations = Annotated[int | None, parsed(integer, "--nfe", "Needed if the engine has several.")]
Scale = Annotated[str, valued("LOW,HIGH", "--scale", "What 0 and 255 become for your own features.")]
Workers = Annotated[int | None, parsed(integer, "--workers", "On Ray; default: what it has room for.")]


def outside(path: Path | None) -> Path | None:
    """A file to be written, refused before any work when it lies in an engine. Raises InputError."""
    from ...engine.files.outside import check_outside

    if path is not None:
        check_outside(path)
    return path


JsonFile = Annotated[
    Path | None, typer.Option("--json", callback=outside, help="Also write the figures to this file, with the machine.")
]
