"""Samplers in the order in which they won on other networks, so that a short search begins with what is likely.

bench/studies/samplers/prior.py made the order, on small trained networks: each next sampler is the one that helped most
those networks that the ones before it had served worst.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from ...engine.compiler.schedule import parse_schedule
from ...engine.compiler.start import time_of_alpha
from .candidates import Candidate, Setting

PATH = Path(__file__).parent / "prior.json"
ALPHAS = (None, 0.015, 0.04, 0.09)  # of the start; None is the latest start
NFE = (5,)  # that the study measured


def prior(setting: Setting) -> Iterator[Candidate]:
    """The samplers of the stored order for what the network predicts and the nearest NFE."""
    kind = "eps" if setting.prediction == "eps" else "others"
    nearest = min(NFE, key=lambda count: abs(count - setting.nfe))
    for solver, grid, basis, alpha in json.loads(PATH.read_text())[kind][str(nearest)]:
        yield Candidate(solver, grid, basis, start_of_alpha(alpha, setting))


PLAIN = ("trailing", "uniform", "logsnr", "karras:rho=3")  # grids of DDIM, of which the best is a finisher


def in_order(
    candidates: Iterable[Candidate],
    setting: Setting,
    only: tuple[Sequence[Any] | None, ...],
    measured: Iterable[Candidate] = (),
) -> Iterator[Candidate]:
    """The candidates of a search as they should be tried: the first of them, DDIM, the prior's, and all others.

    measured: candidates on grids that were found for this network, tried in turn with the prior's.
    only: (solvers, grids, bases) that were asked for, None for all; the prior's that are not of them are left out.
    """
    rest = iter(candidates)
    yield from islice(rest, 1)
    solvers, grids, bases = only
    plain = [Candidate("ddim", grid, "eps", setting.t_start) for grid in PLAIN]
    pairs = zip_longest(() if grids is not None else measured, prior(setting))
    known = plain + [one for pair in pairs for one in pair if one is not None]
    for one in known:
        named = solvers is None or one.solver in solvers
        placed = grids is None or one.grid in grids
        if named and placed and (bases is None or one.basis in bases):
            yield one
    yield from rest


def start_of_alpha(alpha: float | None, setting: Setting) -> float:
    """The time of that alpha, never above the latest start."""
    if alpha is None:
        return setting.t_start
    return min(setting.t_start, time_of_alpha(parse_schedule(setting.schedule), alpha))
