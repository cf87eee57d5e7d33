"""What `pfdiff tune` found for the shipped policy, by NFE: arguments of `pfdiff.compile`."""

from __future__ import annotations

from typing import Any

TUNED: dict[int, dict[str, Any]] = {nfe: {"solver": "dpm++:2m", "grid": "uniform"} for nfe in (1, 2, 4, 8, 16)}
