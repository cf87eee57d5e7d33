"""The time that a network is fed, as a function of the schedule's time t, and the sign of what it predicts.

    fed = offset + scale q(t)

| q         | formula                    | known as                                              |
|-----------|----------------------------|-------------------------------------------------------|
| `t`       | t                          | the schedule's time                                   |
| `sigma`   | sigma_t / alpha_t          | EDM's sigma, the `sigmas` of diffusers and k-diffusion |
| `logsnr`  | 2 log(alpha_t / sigma_t)   | log-SNR (arXiv 2202.00512)                            |
| `c_noise` | log(sigma_t / alpha_t) / 4 | EDM's c_noise (arXiv 2206.00364, table 1)             |

Written as "1-t", "1000*t", "1000-1000*t", "sigma", "0.5*logsnr". A scale of t alone is `time_scale`; any other map
becomes part of the exported graph, so that engines and programs know the schedule's time only.

A flow network predicts the derivative of x by its own time. So where the map turns the time round, `flow` means
x_0 - eps, as the tutorials have it in which t = 0 is noise and t = 1 is data; `-flow` is the reverse of `flow`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from ..engine.compiler.schedule import Edm, Float64s, Flow, Schedule, Vp
from ..engine.contract.contract import PREDICTIONS
from ..engine.errors import InputError

QUANTITIES = ("t", "sigma", "logsnr", "c_noise")
USAGE = "1-t, 1000*t, 1000-1000*t, sigma, logsnr or c_noise, with numbers before * and around + and -"
TERM = r"[+-]?(?:\d[eE][+-]|[^+-])+"  # of a sum
# What others call the predictions.
ALIASES = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
MEANT = {
    **{"noise": "eps", "image": "x0", "data": "x0", "denoised": "x0", "original": "x0", "vector_field": "flow"},
    **{"x_0": "x0", "x_start": "x0", "x0_pred": "x0", "pred_x0": "x0", "vpred": "v", "rectified": "flow"},
}


@final
@dataclass(frozen=True)
class TimeMap:
    """fed = offset + scale q(t), with q a quantity of the table above."""

    quantity: str = "t"
    scale: float = 1.0
    offset: float = 0.0

    @property
    def is_scale(self) -> bool:
        """Whether `time_scale` says it all."""
        return self.quantity == "t" and self.offset == 0 and self.scale > 0

    @property
    def turns_round(self) -> bool:
        """Whether the network's time runs from noise to data."""
        return self.quantity == "t" and self.scale < 0

    def values(self, times: Any, schedule: Schedule) -> Float64s:
        """What the network is fed at the schedule's `times`, float64. Raises InputError where it is infinite."""
        t = np.asarray(times, np.float64)
        with np.errstate(divide="ignore"):
            match self.quantity:
                case "t":
                    q = t
                case "sigma":
                    q = schedule.sigma(t) / schedule.alpha(t)
                case "logsnr":
                    q = 2 * schedule.lam(t)
                case _:
                    q = -schedule.lam(t) / 4
        fed = self.offset + self.scale * q
        if not np.isfinite(fed).all():
            where = t.ravel()[np.argmin(np.isfinite(fed).ravel())]
            raise InputError(
                f"time_map '{self}' is infinite at time {where:g}, where alpha is 0; give the network as a module that "
                "bounds it, or another map"
            )
        return fed

    def __str__(self) -> str:
        scaled = self.quantity if self.scale == 1 else f"{_exact(self.scale)}*{self.quantity}"
        return scaled if self.offset == 0 else f"{_exact(self.offset)}{'' if self.scale < 0 else '+'}{scaled}"


def _exact(value: float) -> str:
    """All digits, as two maps with the same text are the same network."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def parse_time_map(text: str) -> TimeMap:
    """The map that a text means, such as '1-t'. Raises InputError."""
    found: TimeMap | None = None
    offset, whole = 0.0, re.sub(r"\s", "", text)
    terms = re.findall(TERM, whole)
    if "".join(terms) != whole:
        raise InputError(f"time_map '{text}': got a sign without a number, expected {USAGE}")
    for term in terms:
        match = re.fullmatch(rf"([+-]?)(?:([\d.eE+-]+)\*)?({'|'.join(QUANTITIES)})(?:([*/])([\d.eE+-]+))?", term)
        try:
            if match is None:
                offset += float(term)
                continue
            sign, before, quantity, operator, after = match.groups()
            factor = float(before or 1) * (float(after or 1) if operator != "/" else 1 / float(after))
        except (ValueError, ZeroDivisionError):
            raise InputError(f"time_map '{text}': got '{term}', expected {USAGE}") from None
        if found is not None or factor == 0:
            raise InputError(f"time_map '{text}': expected one of {', '.join(QUANTITIES)} once, such as 1-t")
        found = TimeMap(quantity, -factor if sign == "-" else factor)
    if not math.isfinite(offset) or (found is not None and not math.isfinite(found.scale)):
        raise InputError(f"time_map '{text}': expected finite numbers, such as 1000*t")
    if found is None:
        raise InputError(f"time_map '{text}': it names none of {', '.join(QUANTITIES)}; expected {USAGE}")
    return TimeMap(found.quantity, found.scale, offset)


def parse_prediction(text: str) -> tuple[str, bool]:
    """(one of our predictions, whether its sign is turned): 'epsilon' is 'eps', '-flow' a turned 'flow'."""
    name = text.removeprefix("-")
    name = ALIASES.get(name, name)
    if name.lower() == "velocity":
        raise InputError(f"prediction '{text}' has two meanings: give v for alpha eps - sigma x0, or flow for eps - x0")
    if name.lower() == "score":
        raise InputError(
            f"prediction '{text}': a score is -eps / sigma; multiply it by -sigma in forward, and give eps"
        )
    if name and name not in PREDICTIONS:
        known = (*PREDICTIONS, *ALIASES, *MEANT)
        near = [MEANT.get(one, one) for one in difflib.get_close_matches(name.lower(), known, 1, 0.4)]
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"prediction '{text}', expected one of {', '.join((*PREDICTIONS, *ALIASES))}{hint}")
    if text.startswith("-") and name != "flow":
        raise InputError(f"prediction '{text}': only flow has a sign; expected {', '.join(PREDICTIONS)} or -flow")
    return name, text.startswith("-")


def formula(time_map: TimeMap, schedule: Schedule) -> Callable[[Any], Any]:
    """The map on a continuous schedule, of what has arithmetic, `log`, `exp` and `tanh`: tensors, a graph's values.

    1 - exp(-u) is written 2 h / (1 + h) with h = tanh(u / 2), which keeps float32's digits at small u.
    """
    scale, offset = time_map.scale, time_map.offset

    def log_ratio(t: Any) -> Any:
        """log(sigma_t / alpha_t)."""
        match schedule:
            case Edm():
                return t.log()
            case Flow():
                return t.log() - (1 - t).log()
            case Vp():
                u = t * t * ((schedule.beta_max - schedule.beta_min) / 2) + t * schedule.beta_min  # -2 log alpha
                h = (u * 0.5).tanh()
                return ((h * 2) / (h + 1)).log() * 0.5 + u * 0.5
        raise InputError(f"time_map '{time_map}' has no rule for the schedule {type(schedule).__name__}")

    def mapped(t: Any) -> Any:
        match time_map.quantity:
            case "t":
                q = t
            case "sigma":
                q = log_ratio(t).exp()
            case "logsnr":
                q = log_ratio(t) * -2.0
            case _:
                q = log_ratio(t) * 0.25
        return q * scale + offset

    return mapped
