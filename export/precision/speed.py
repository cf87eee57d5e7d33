"""How fast a network.onnx is on this CPU: the best of the installed libraries, files taking turns."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...engine.backends.abstract import Buffers, Evaluate, NetworkFiles
from ...engine.backends.fastest import QUIET_S, TIMED, TURNS, awake_ms, turn_ms
from ...engine.backends.registry import is_installed, open_backend
from ...engine.contract.contract import Contract


def milliseconds(files: Mapping[str, tuple[Path, Contract]], batch: int = 1) -> dict[str, float]:
    """Of an evaluation of `batch` samples, by the names of `files`; what no library runs is left out."""
    runs: dict[tuple[str, str], Evaluate] = {}
    awake: dict[tuple[str, str], float] = {}
    held: list[object] = []
    for name, (path, contract) in files.items():
        for library in filter(is_installed, TIMED):
            try:
                backend = open_backend(library, NetworkFiles(path, contract), None)
                buffers = Buffers.of(contract, contract.fixed_batch or batch, backend.dtype)
                (evaluate,) = backend.bind([buffers])
                awake[name, library] = awake_ms(evaluate)
            except Exception:  # whatever its library raises: another may run it
                continue
            held += [backend, buffers]
            runs[name, library] = evaluate
    times = dict.fromkeys(runs, np.inf)
    for key in [*runs] * TURNS:
        time.sleep(QUIET_S)
        times[key] = min(times[key], turn_ms(runs[key], awake[key]))
    found: dict[str, float] = {}
    for (name, _), value in times.items():
        found[name] = min(found.get(name, np.inf), float(value))
    return found
