"""`pfdiff export`: the whole sampler as one ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..engine.errors import InputError
from . import options


def export(
    engine: options.EngineArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="The .onnx file to write.")],
    nfe: options.Evaluations = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare with the engine before the file appears.")
    ] = True,
) -> None:
    """Write the whole sampler, noise in, samples out, as one ONNX model for plain onnxruntime."""
    from .networks import read_engine
    from .progress import stages

    read_engine(engine, nfe=nfe).program(nfe)
    with stages() as progress:
        progress("reading the engine")
        from ..export.sampler_onnx import export_sampler

        try:
            export_sampler(engine, out, nfe, check=check, progress=progress)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"cannot write {out}: {reason}; nothing was changed, free some space") from error
    print(progress.last)
