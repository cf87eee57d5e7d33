"""Where sampling starts: the schedule's last time, unless an eps-network's x0 is not sound there.

x0 = (x - sigma eps) / alpha multiplies the error of an eps-network by sigma / alpha. Cosine schedules end near
alpha = 1e-4, where a step from the last time is the network's error times 10,000.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .schedule import Schedule, parse_schedule

if TYPE_CHECKING:
    from .program import Program

SOUND_ALPHA = 0.01  # where an eps-network starts on a schedule that ends below LOW_ALPHA
LOW_ALPHA = 0.005  # linear:1000 ends at 0.0064, vp at 0.0066: those who trained on them sample from the end
# Below this one pictures break: of an MNIST network on cosine:60 all from alpha 2.6e-4, none from 0.026.
BROKEN_ALPHA = 0.001
CLEAN = 0.5  # a program that starts below this sigma / alpha gives back its noise


def default_start(schedule: str, prediction: str) -> float:
    """The schedule's last time; for eps-networks on schedules that end below alpha 0.005, where alpha is 0.01."""
    process = parse_schedule(schedule)
    if prediction != "eps" or float(process.alpha(process.last)) >= LOW_ALPHA:
        return process.last
    return time_of_alpha(process, SOUND_ALPHA)


def time_of_alpha(process: Schedule, alpha: float) -> float:
    """The noisiest time whose signal coefficient, at alpha^2 + sigma^2 = 1, is `alpha`; never above the last time.

    On other schedules the time of the same ratio sigma / alpha. Whole on discrete schedules.
    """
    lam = math.log(alpha / math.sqrt(1 - alpha**2))
    if float(process.lam(process.last)) >= lam:
        return process.last
    time = float(process.time_from_lambda(lam))
    return float(math.floor(time)) if process.discrete else time


def doubt_of_start(program: Program) -> str | None:
    """One line on a program that starts where its samples are likely to break, else None.

    Either an eps-network's x0 is mostly its error there, or pure noise stands for a state that is mostly clean.
    """
    process, start = parse_schedule(program.schedule), float(program.times[0])
    alpha, sigma = float(process.alpha(start)), float(process.sigma(start))
    head = f"NFE {program.nfe} starts at time {start:g} of {program.schedule}, where"
    if sigma < CLEAN * alpha:
        return (
            f"{head} x is {alpha / (alpha + sigma):.0%} picture, and is given pure noise: its samples are noise; "
            "take another grid (--grid trailing) or more evaluations"
        )
    if program.prediction != "eps" or program.clip is not None or alpha >= BROKEN_ALPHA:
        return None
    sound = default_start(program.schedule, "eps")
    return (
        f"{head} alpha is {alpha:.1e} and the x0 of an eps-network its error times {1 / alpha:.0f}; if samples break, "
        f"start at {sound:g} (t_start, --t-start) or clip x0 (clip, --clip 1)"
    )
