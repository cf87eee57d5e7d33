"""What a measurement does with the calls that it has left: a finer reference, and further grids of DDIM.

A network whose answer varies fast in x or t is sampled best by DDIM, and its 48 evaluations of reference are then off
by as much as the samplers differ. So where the reference is in doubt beside the least error, samples are judged again
by one of 144 evaluations. Where DDIM is near the best, it is tried on the grids that the first look leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ...engine.compiler.program import Program
from ...engine.compiler.schedule import parse_schedule
from ...engine.compiler.start import default_start, time_of_alpha
from ...engine.errors import InputError

if TYPE_CHECKING:
    from .meter import Meter

FINE_NFE = 144
IN_DOUBT = 0.1  # of the least error
NEAR = 0.6  # of DDIM's error: no further grid makes up for more
FURTHER: tuple[tuple[str, float | None], ...] = (
    ("quadratic", 0.08),
    ("logsnr", 0.08),
    ("leading", 0.08),
    ("quadratic", None),
    ("uniform", 0.08),
    ("logsnr", 0.03),
    ("uniform", 0.03),
)
Like = Callable[[Program, int, str, str, str | None, float], Program]  # nfe, solver, grid, basis, start


@dataclass(eq=False)
class Look:
    """What was measured of one NFE: programs, the rule's first, and their samples [seeds, *shape]."""

    programs: list[Program]
    samples: list[Tensor]

    def errors(self, truth: Tensor) -> list[float]:
        """RMS distances; infinite where a sample is not finite."""
        found = [float((one.double() - truth.double()).square().mean().sqrt()) for one in self.samples]
        return [one if math.isfinite(one) else math.inf for one in found]


def finer(
    reference: Program, truth: Tensor, doubt: float, looks: dict[int, Look], meter: Meter, like: Like
) -> tuple[Program, Tensor, float]:
    """(reference, its samples, how far it may be off): the same, or a finer one where that is needed and paid for."""
    least = min((min(look.errors(truth)) for look in looks.values()), default=math.inf)
    if not 0 < IN_DOUBT * least < doubt or meter.left < FINE_NFE + max(looks):
        return reference, truth, doubt
    fine = like(reference, FINE_NFE, reference.solver, str(reference.grid), reference.basis, reference.times[0])
    samples = meter.sample(fine)
    off = float((samples.double() - truth.double()).square().mean().sqrt()) / 4
    return (fine, samples, off) if math.isfinite(off) and off < doubt else (reference, truth, doubt)


def on_further_grids(look: Look, truth: Tensor, meter: Meter, like: Like) -> None:
    """Where DDIM is near the least error, it on further grids too, as far as the calls go."""
    errors = look.errors(truth)
    ddim = min((error for one, error in zip(look.programs, errors, strict=True) if one.solver == "ddim"), default=0.0)
    if min(errors) < NEAR * ddim:
        return
    rule = look.programs[0]
    process = parse_schedule(rule.schedule)
    latest = default_start(rule.schedule, rule.prediction, rule.clip)
    seen = {one.digest for one in look.programs}
    for grid, alpha in FURTHER:
        start = latest if alpha is None else min(latest, time_of_alpha(process, alpha))
        try:
            program = like(rule, rule.nfe, "ddim", grid, None, start)
        except InputError:  # a short schedule, too few times
            continue
        if program.digest not in seen and meter.left >= program.nfe:
            samples = meter.sample(program)  # first, as the calls may end here
            seen.add(program.digest)
            look.programs.append(program)
            look.samples.append(samples)
