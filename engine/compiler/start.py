"""Where sampling starts: the time from which the x0 that a network means is sound."""

from __future__ import annotations

import math

from .program import Program
from .schedule import parse_schedule

SOUND_ALPHA = 0.01  # below it the x0 of an eps-network loses its digits: x0 = (x - sigma eps) / alpha
# Below this alpha pictures break: with an MNIST network on cosine:60, all from alpha 2.6e-4 and none from 0.026.
BROKEN_ALPHA = 0.001


def default_start(schedule: str, prediction: str) -> float:
    """The schedule's last time; for eps-networks the last time with alpha of at least 0.01. Raises InputError.

    Cosine schedules end near alpha = 1e-4. There, computing x0 multiplies the error of an eps-network by 10,000.
    """
    process = parse_schedule(schedule)
    if prediction != "eps" or float(process.alpha(process.last)) >= SOUND_ALPHA:
        return process.last
    start = float(process.time_from_lambda(math.log(SOUND_ALPHA / math.sqrt(1 - SOUND_ALPHA**2))))
    return float(math.floor(start)) if process.discrete else start


def doubt_of_start(program: Program) -> str | None:
    """One line about a program of an eps-network that starts where x0 is mostly the network's error, else None."""
    process, start = parse_schedule(program.schedule), float(program.times[0])
    alpha = float(process.alpha(start))
    if program.prediction != "eps" or program.clip is not None or alpha >= BROKEN_ALPHA:
        return None
    sound = default_start(program.schedule, "eps")
    return (
        f"NFE {program.nfe} starts at time {start:g} of {program.schedule}, where alpha is {alpha:.1e} and the x0 "
        f"of an eps-network its error times {1 / alpha:.0f}; if samples break, start at {sound:g} "
        "(t_start, --t-start) or clip x0 (clip, --clip 1)"
    )
