"""`pfdiff export`: the whole sampler as one ONNX file, or as models for Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..engine.errors import InputError
from .arguments import options
from .output.figures import as_name

Out = Annotated[Path, typer.Option("--out", "-o", help="The .onnx file, or the folder of models.")]
Check = Annotated[bool, typer.Option("--check/--no-check", help="Compare with the engine before the file appears.")]
Pixels = Annotated[
    bool, typer.Option("--pixels", help="A second output: pixels, through the decoder of a latent model.")
]
FromSeeds = Annotated[
    bool, typer.Option("--from-seeds", help="Seeds in, in place of noise: the file makes all noise itself.")
]
Triton = Annotated[
    bool, typer.Option("--triton", help="A Triton model repository: a model for each NFE, or for --nfe.")
]


def export(
    engine: options.EngineArgument,
    out: Out,
    nfe: options.Evaluations = None,
    check: Check = True,
    pixels: Pixels = False,
    from_seeds: FromSeeds = False,
    triton: Triton = False,
) -> None:
    """Write the whole sampler, noise or seeds in, samples out, as one ONNX model for onnxruntime, or for Triton."""
    from .arguments.networks import read_engine
    from .output.progress import stages

    artifact = read_engine(engine, nfe=nfe)
    if not triton:
        artifact.program(nfe)
    with stages() as progress:
        progress("reading the engine")
        from ..export.one_file.sampler_onnx import export_sampler
        from ..export.one_file.triton_repository import export_triton

        if triton and pixels:
            raise InputError("--pixels with --triton: its models give samples; leave one of them out")
        try:
            if triton:
                export_triton(engine, out, nfe, from_seeds=from_seeds, check=check, progress=progress)
            else:
                export_sampler(engine, out, nfe, pixels=pixels, from_seeds=from_seeds, check=check, progress=progress)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"cannot write {out}: {reason}; nothing was changed, free some space") from error
    print(as_name(progress.last))
