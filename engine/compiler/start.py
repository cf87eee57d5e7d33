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
SHORT = 128  # times of a schedule whose truth is DDIM over every time: the sampler such a network was trained for
CLEAN = 1 / 3  # sigma / (alpha + sigma) below which a program that starts from noise gives it back


def default_start(schedule: str, prediction: str, clip: float | None = None) -> float:
    """The schedule's last time; for eps-networks on schedules that end below alpha 0.005, where alpha is 0.01.

    Cosine schedules end near alpha = 1e-4. There, computing x0 multiplies the error of an eps-network by 10,000, unless
    x0 is clipped. At alpha = 0 no clip helps. Raises InputError.
    """
    process = parse_schedule(schedule)
    alpha = float(process.alpha(process.last))
    if prediction != "eps" or alpha >= LOW_ALPHA or (clip is not None and alpha > 0):
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

    Either pure noise stands for a state that is mostly clean, or an eps-network's x0 is mostly its error there.
    """
    if doubt := doubt_of_clean_start(program):
        return doubt
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


def doubt_of_clean_start(program: Program) -> str | None:
    """One line on a program whose samples are its noise, as it starts where x is mostly clean; else None.

    With one evaluation diffusers' leading and linspace spacings start at time 1 and 0.
    """
    process, start = parse_schedule(program.schedule), float(program.times[0])
    share = float(process.sigma(start) / (process.alpha(start) + process.sigma(start)))
    if share > CLEAN:
        return None
    return (
        f"NFE {program.nfe} starts from pure noise at time {start:g} of {program.schedule}, where x is {share:.0%} "
        "noise: the samples will be noise; take the grid trailing, or more evaluations"
    )
