"""Samplers of the shipped policy by name: plain ones, and what `pfdiff tune` found for each NFE.

TUNED holds arguments of `pfdiff.compile`; its criterion was `failures` of gates_rollout.py.
"""

from __future__ import annotations

from typing import Any

from ...engine.compiler.compile import compile
from ...engine.compiler.program import Program
from ...engine.contract.contract import Contract

NFE = (1, 2, 4, 8, 16)
CLIP, GRID = 1.0, "trailing"
PLAIN: dict[str, dict[str, Any]] = {
    "DDIM": {"solver": "ddim", "grid": GRID},
    "DDPM": {"solver": "ddpm", "grid": GRID},
    "PFDiff": {"solver": "pfdiff:k=2,l=1", "grid": GRID},
}
# A single evaluation leaves nothing to search.
TUNED: dict[int, dict[str, Any]] = {
    1: PLAIN["DDIM"],
    2: {"solver": "pfdiff:k=1,l=1", "grid": "uniform", "basis": "x0", "t_start": 91},
    4: {"solver": "dpm++:2m", "grid": "karras", "basis": "x0"},
    8: {"solver": "ddim", "grid": "karras", "basis": "x0"},
    16: {"solver": "ddpm", "grid": "karras", "basis": "x0"},
}
NAMES = (*PLAIN, "tuned")


def programs_of(contract: Contract, name: str) -> dict[int, Program]:
    """A sampler's programs by NFE."""
    given = {nfe: {"clip": CLIP, **(TUNED[nfe] if name == "tuned" else PLAIN[name])} for nfe in NFE}
    return {
        nfe: compile(schedule=contract.schedule, nfe=nfe, prediction=contract.prediction, **options)
        for nfe, options in given.items()
    }
