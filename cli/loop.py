"""`pfdiff bench --loop 50Hz`: an engine driven at a rate, as in a control loop."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..engine.errors import InputError, shown

if TYPE_CHECKING:
    from ..engine.api import Engine
    from ..engine.runtime.timing.rate import RateReport

MOST_TICKS, MOST_LOAD = 10_000_000, 256
COLUMNS = {"NFE": 4, "ticks": 6, "missed": 6, "": 8, "p50": 8, "p99": 8, "p99.9": 8, "max": 8, "jitter": 8}


def rate_of(text: str) -> float:
    """Calls a second of "50Hz" or "50". Raises InputError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:hz)?", text.strip(), re.IGNORECASE)
    hz = float(found[1]) if found else 0.0
    if not 0 < hz <= 100_000:
        raise InputError(f"--loop {shown(text)}, expected calls a second, at most 100000, such as 50Hz")
    return hz


def asked_rate(loop: str | None, seconds: float, load: int, batch: str | None) -> float | None:
    """Calls a second that --loop asks for, None without it. Raises InputError on options that do not go together."""
    if loop is None:
        if load:
            raise InputError("--load is of --loop; give --loop 50Hz too")
        return None
    hz = rate_of(loop)
    check_length(hz, seconds, load)
    if batch:
        raise InputError("--loop samples one at a time; leave --batch out")
    return hz


def check_length(hz: float, seconds: float, load: int) -> None:
    """Raises InputError for a time without a tick, more ticks than memory should hold, or too many processes."""
    if not (seconds > 0 and 1 <= hz * seconds <= MOST_TICKS):
        raise InputError(
            f"--seconds {seconds:g} at {hz:g} Hz, expected a time of at least one tick and at most {MOST_TICKS:,}"
        )
    if load > MOST_LOAD:
        raise InputError(f"--load {load}, expected at most {MOST_LOAD} processes")


def driven(engine: Engine, counts: list[int], hz: float, seconds: float, load: int) -> list[dict[str, Any]]:
    """A line and a record for each NFE."""
    from ..engine.runtime.timing.rate import run_at

    beside = f", {load} busy process{'es' * (load > 1)} beside it" if load else ""
    print(f"{hz:g} Hz, {seconds:g} s each, batch 1{beside}\n")
    print("  ".join(name.rjust(width) for name, width in COLUMNS.items()), flush=True)
    records = []
    for nfe in counts:
        found = run_at(engine.tick_call(nfe), hz, seconds, load=load)
        for line in lines_of(nfe, found):
            print(line, flush=True)
        records.append({"nfe": nfe, **asdict(found)})
    print("\nms; call: a whole sample; late: of a call's beginning, after its tick")
    return records


def lines_of(nfe: int, one: RateReport) -> list[str]:
    """Two lines of the table: calls, and how late they begin."""
    texts = [
        (nfe, one.ticks, one.missed, "call", *map(_text, one.call_ms), ""),
        ("", "", "", "late", *map(_text, one.late_ms), _text(one.jitter_ms)),
    ]
    return ["  ".join(str(cell).rjust(w) for cell, w in zip(row, COLUMNS.values(), strict=True)) for row in texts]


def _text(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:.1f}"
