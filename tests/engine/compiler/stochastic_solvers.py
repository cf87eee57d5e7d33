"""Solvers that draw noise: state buffers, and the order of their marginals on normal data, None where none is known."""

from __future__ import annotations

STOCHASTIC: dict[str, tuple[int, int | None]] = {
    "ddpm": (1, 1),
    "ddpm:variance=large": (1, 1),
    "ddim:eta=0.5": (1, 1),
    "euler-a": (1, 1),
    "dpm++:sde": (2, 2),
    "dpm++:2m-sde": (2, 2),
    "dpm++:3m-sde": (3, 2),  # halves the second difference
    "dpm++:3m-sde-diffusers": (3, 1),
    "sa:predictor=1,corrector=0": (1, 1),
    "sa": (3, None),
    "sa:predictor=3,corrector=3,tau=0.5": (4, None),
    "lcm": (1, None),
    "tcd:gamma=0.3": (1, None),
    "consistency": (1, None),
    "analytic-ddpm:x0_var=0.5/0.4/0.3/0.2/0.1/0.05/0": (1, None),
    "analytic-ddim:x0_var=0.5/0.4/0.3/0.2/0.1/0.05/0": (1, None),
    "pfdiff:k=2,l=1,eta=0.5": (2, None),
    "pfdiff:k=3,l=2,base=analytic-ddim,x0_var=0.5/0.4/0.3/0.2/0.1/0.05/0": (2, None),
    "tada:order=1": (2, 1),
    "tada": (4, None),
    "tada:variables=3,order=2,scale=2": (4, None),
    "sa:predictor=2,corrector=0": (2, 2),
    "sa:predictor=2,corrector=2": (3, 2),
    "sa:predictor=2,corrector=2,tau=0.4": (3, 2),
    "pfdiff:k=2,l=1,eta=1": (2, 1),
    "pfdiff:k=3,l=1,eta=0.5": (2, 1),
    "tada:order=2": (3, 2),
    "tada:order=2,scale=2": (3, 2),
    "tada:variables=4,order=2": (4, 2),
}
BUFFERS = {solver: buffers for solver, (buffers, _) in STOCHASTIC.items()}
ORDERS = {solver: order for solver, (_, order) in STOCHASTIC.items() if order}
