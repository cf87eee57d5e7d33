"""Starts from a picture as files, for `pfdiff-run`, which compiles no program: the last part of an engine's way.

    {"format": "pfdiff-start 1", "strength", "program": {...}, "start": [a, b], "known": [[a_n, b_n], ..]}

Sampling starts from z = a x_0 + b eps in the place of the noise eps of a seed. With a mask, where it is 0, the state
becomes a_n x_0 + b_n z after evaluation n. At strength 1 it starts from noise alone (a = 0, b = 1), and the picture
counts only where a mask keeps it, as in `engine.images`.
"""

from __future__ import annotations

import os

from ..engine.artifact import read_artifact
from ..engine.compiler.program import Program
from ..engine.compiler.schedule import parse_schedule
from ..engine.files.outside import check_outside
from ..engine.runtime.pictures.masked import known_factors
from ..engine.runtime.pictures.picture_start import program_of
from .tables import write_json

FORMAT = "pfdiff-start 1"


def export_start(
    engine: str | os.PathLike[str], nfe: int | None, strength: float, out: str | os.PathLike[str], counts: str = "part"
) -> Program:
    """Write what starts at `strength` with the engine's program for `nfe`; the program of that part of the way.

    counts: "part" or "whole", as strength_counts of `engine.images`. Raises InputError, EngineFileError.
    """
    artifact = read_artifact(engine)
    check_outside(out)
    whole = artifact.program(nfe)
    program = program_of(whole, strength, counts)
    mixed = strength < 1
    if mixed:
        schedule, first = parse_schedule(program.schedule), float(program.times[0])
        factor = float(program.table[0, 0])
        start = [float(schedule.alpha(first)) / factor, float(schedule.sigma(first)) / factor]
    else:
        program, start = whole, [0.0, 1.0]
    artifact.contract.feed_times(program.network_times)
    content = {
        "format": FORMAT,
        "strength": strength,
        "program": program.to_dict(),
        "start": start,
        "known": known_factors(program, mixed=mixed).tolist(),
    }
    write_json(out, content)
    return program
