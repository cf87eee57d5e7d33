"""`pfdiff build`: a network becomes an engine directory."""

from __future__ import annotations

import sys
from typing import Any

import typer

from . import options


def build(
    context: typer.Context,
    network: options.NetworkArgument,
    nfe: options.EvaluationsList,
    out: options.EngineOut = None,
    shape: options.Shape = None,
    schedule: options.Schedule = None,
    prediction: options.Prediction = None,
    input_name: options.InputName = None,
    time_name: options.TimeName = None,
    output_name: options.OutputName = None,
    condition: options.ConditionOption = None,
    time_scale: options.TimeScale = None,
    time_dtype: options.TimeDtype = None,
    learned_sigma: options.LearnedSigma = False,
    sigma_data: options.SigmaData = None,
    guidance: options.Guidance = None,
    decoder: options.DecoderOption = None,
    solver: options.Solver = "pfdiff:k=2,l=1",
    grid: options.GridOption = None,
    basis: options.Basis = None,
    clip: options.Clip = None,
    t_start: options.StartTime = None,
    end: options.EndTime = None,
    batch: options.Batch = None,
    precision: options.Precision = "fp32",
    backend: options.Backend = "auto",
    device: options.Device = "auto",
    target: options.Target = None,
    threads: options.Threads = None,
) -> None:
    """Turn a network into an engine directory."""
    from .networks import network_arguments
    from .progress import stages
    from .values import end_from, grid_from, integers_from

    described = network_arguments(network, context.params)
    settings: dict[str, Any] = {"basis": basis, "clip": clip, "t_start": t_start}
    settings |= {"precision": precision, "backend": backend, "device": device, "threads": threads, "out": out}
    settings |= {"target": target or (), "end": end_from(end) if end else None}
    settings |= {"grid": grid_from(grid) if grid else None, "batch": integers_from("--batch", batch) if batch else None}
    evaluations = integers_from("--nfe", nfe)
    with stages() as progress:
        progress("reading the network")
        from .. import Network
        from .. import build as build_engine

        source = Network(network, **described)
        settings |= {"progress": progress, "plan_progress": progress.step}
        with build_engine(source, evaluations, solver, **settings) as engine:
            programs = [engine.programs[count] for count in evaluations]
    print(progress.last)
    from ..engine.compiler.start import doubt_of_start

    for doubt in list(filter(None, map(doubt_of_start, programs)))[:1]:
        print("pfdiff:", doubt, file=sys.stderr)
