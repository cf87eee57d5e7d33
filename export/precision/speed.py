"""How fast a network.onnx is on this CPU, and whether its libraries compute what it says: files taking turns."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from ...engine.backends.abstract import Buffers, Evaluate, NetworkFiles
from ...engine.backends.fastest import QUIET_S, TIMED, TURNS, awake_ms, turn_ms
from ...engine.backends.registry import is_installed, open_backend
from ...engine.contract.contract import Contract
from ..check import TrialInputs

Array = NDArray[Any]


@final
@dataclass(frozen=True, eq=False)
class Timed:
    """By file the milliseconds of its best library, and by library what it makes of the trial's inputs."""

    milliseconds: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, dict[str, list[Array]]] = field(default_factory=dict)


def timed(files: Mapping[str, tuple[Path, Contract]], trial: Sequence[TrialInputs]) -> Timed:
    """An evaluation of every file, by its name, by each library that runs it. trial: of a sample or a fixed batch."""
    found = Timed()
    runs: dict[tuple[str, str], Evaluate] = {}
    awake: dict[tuple[str, str], float] = {}
    held: list[object] = []
    for name, (path, contract) in files.items():
        for library in filter(is_installed, TIMED):
            try:
                backend = open_backend(library, NetworkFiles(path, contract), None)
                buffers = Buffers.of(contract, len(trial[0].x), backend.dtype)
                (evaluate,) = backend.bind([buffers])
                made = [_evaluated(buffers, evaluate, case) for case in trial]
                awake[name, library] = awake_ms(evaluate)
            except Exception:  # whatever its library raises: another may run it
                continue
            held += [backend, buffers]
            runs[name, library] = evaluate
            found.outputs.setdefault(name, {})[library] = made
    times = dict.fromkeys(runs, np.inf)
    for key in [*runs] * TURNS:
        time.sleep(QUIET_S)
        times[key] = min(times[key], turn_ms(runs[key], awake[key]))
    for (name, _), value in times.items():
        found.milliseconds[name] = min(found.milliseconds.get(name, np.inf), float(value))
    return found


def _evaluated(buffers: Buffers, evaluate: Evaluate, case: TrialInputs) -> Array:
    for buffer, value in zip(buffers.inputs, case.inputs, strict=True):
        buffer.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    return evaluate().float().numpy().copy()
