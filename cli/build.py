"""`pfdiff build`: a network becomes an engine directory."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from .arguments import options
from .arguments.networks import BUILT, built_arguments, clip_for, takes
from .arguments.process import OWN_PROCESS
from .arguments.typed import as_typed
from .output.figures import as_name, narrow

if TYPE_CHECKING:
    from ..engine.compiler.program import Program

# Lines of a build that stay on the screen: the samplers chosen, what a precision gains and costs.
KEPT = ("sampler ", "precision ", "decoder: ", "fp32: ", "bf16: ", "fp16: ", "int8: ", "fp8: ")
AT_ONCE = "eight bits take "  # how long, which is of use only before


@takes(BUILT, before="solver")
def build(
    context: typer.Context,
    network: options.NetworkArgument,
    nfe: options.EvaluationsList,
    out: options.EngineOut = None,
    solver: options.Solver = "auto",
    grid: options.GridOption = None,
    basis: options.Basis = None,
    clip: options.Clip = None,
    t_start: options.StartTime = None,
    end: options.EndTime = None,
    batch: options.Batch = None,
    precision: options.Precision = "fp32",
    quantise_error: options.QuantiseError = None,
    calibrate_prompts: options.CalibratePrompts = None,
    calibrate_conditions: options.CalibrateConditions = None,
    backend: options.Backend = "auto",
    device: options.Device = "auto",
    target: options.Target = None,
    threads: options.Threads = None,
) -> None:
    """Turn a network into an engine directory."""
    from ..engine.backends.registry import check_backend
    from ..engine.compiler.defaults import AUTO
    from ..engine.compiler.solvers import parse_solver
    from .arguments.values import clip_from, device_from, end_from, grid_from, integers_from
    from .output.progress import stages

    # Everything that the network does not decide, before torch is loaded.
    described = built_arguments(network, context.params)
    if solver != AUTO:
        parse_solver(solver)
    check_backend(backend)
    device_from(device)
    if clip is not None:
        clip_from(clip)
    settings: dict[str, Any] = {"basis": basis, "t_start": t_start}
    settings |= {"precision": precision, "backend": backend, "device": device, "threads": threads, "out": out}
    settings |= {"quantise_error": quantise_error, "calibrate_prompts": calibrate_prompts}
    settings |= {"calibrate_conditions": calibrate_conditions}
    settings |= {"target": target or (), "end": end_from(end) if end else None}
    settings |= {"grid": grid_from(grid) if grid else None, "batch": integers_from("--batch", batch) if batch else None}
    evaluations = integers_from("--nfe", nfe)
    with stages() as progress:
        progress("reading the network")
        if context.obj is OWN_PROCESS:
            _import(network, context.params)
        from .. import Network
        from ..export.build import built

        chosen: list[str] = []

        def say(line: str) -> None:
            if line.startswith(AT_ONCE):
                print("pfdiff:", line, file=sys.stderr, flush=True)
            if line.startswith(KEPT):
                chosen.append(line)
            progress(line)

        source = Network(network, **described).disposable()
        settings |= {"clip": clip_for(context.params, source.contract, latents=source.decoder is not None)}
        settings |= {"progress": say, "plan_progress": progress.step}
        with warnings.catch_warnings():  # the doubts below say it in one line
            warnings.filterwarnings("ignore", "NFE .* starts from pure noise")
            made = built(source, evaluations, solver, **settings)
            programs = [made.artifact.programs[count] for count in evaluations]
            if not made.is_large_on_cpu:
                made.open().close()  # it works here, and the first sample finds the fastest library chosen
    print(*map(narrow, chosen), as_name(progress.last), sep="\n")
    _say(source.notes, programs)


def _import(network: str, given: Mapping[str, Any]) -> None:
    """What this build needs, before anything else is made: none of it is ever garbage, which is not looked for."""
    if network.endswith(".onnx"):
        return
    from ..export.pipelines.lean_imports import import_exporter, import_pipeline, is_pipeline_folder

    has_own_code = any(".py" in (given[name] or "") for name in ("decoder", "guidance"))
    gc.disable()
    try:
        if is_pipeline_folder(network) and not given["lora"] and not has_own_code:
            import_pipeline()
        else:
            import_exporter()
        gc.freeze()
    finally:
        gc.enable()


def _say(notes: Sequence[str], programs: Sequence[Program]) -> None:
    """On stderr: the notes of a network, and the first doubt of where a program starts."""
    from ..engine.compiler.start import doubt_of_start

    for line in (*map(as_typed, notes), *list(filter(None, map(doubt_of_start, programs)))[:1]):
        print("pfdiff:", line, file=sys.stderr)
