"""The backend that "auto" means for an engine on this CPU: timed when an engine is first loaded here, and remembered.

Which library is the fastest depends on network, machine and versions. Every installed library that computes in the
engine's precision evaluates the network as a sample does: several times in a row, after a pause. The libraries take
turns, so that a drift of the machine slows them alike. Each turn begins when the threads of the last are asleep.

The result is kept in the cache folder, backends.jsonl, under everything it depends on. Every later load takes the same
backend, so samples do not change from load to load. Deleting the file measures again. The default for the precision is
taken without a measurement where nothing can be kept, for networks too short to gain much, and for very large ones.
"""

from __future__ import annotations

import time
import warnings
from contextlib import ExitStack

import numpy as np

from ..artifact import NETWORK, Artifact, network_digest
from ..atomic import locked
from ..cache import Journal, cache_folder, content_key, make_private
from ..contract.contract import Contract
from ..errors import InputError
from ..machine import cores, processor, version_of
from .abstract import Buffers, Evaluate, NetworkFiles
from .registry import check_precision, choose_backend, is_installed, open_backend

TIMED = ("onnxruntime", "openvino")
KEPT = "backends.jsonl"
LEAST_MS = 1.0  # an evaluation by the default that takes less is not worth loading another library
LARGEST_BYTES = 1 << 30  # of weights: two copies of more might not fit into memory
GAIN = 0.9  # a backend replaces the default only if its time is at most this fraction, so that noise does not decide
EVALUATIONS = 5  # in a row: a few-step sample's
TURNS, TURN_S = 3, 0.1  # of each library, seconds of each; at least one row
QUIET_S = 0.05  # before a turn: ONNX Runtime's threads spin for 30 ms after their work, at another's expense
PAUSE_S = 0.003  # before a row, so that it begins as a call of a user's does


def choose_fastest(files: NetworkFiles, threads: int | None) -> tuple[str, str]:
    """The backend's name, and why it and no other, in one line. A first load times with its own `threads`.

    Raises BackendError when no backend is installed for the precision.
    """
    name, why = choose_backend(computed_in(files))
    rivals = tuple(one for one in TIMED if one != name and is_installed(one))
    artifact = files.artifact
    if rivals and artifact is not None and isinstance(files.contract, Contract):
        size = sum(record.bytes for file, record in artifact.files.items() if file.startswith(NETWORK))
        if size > LARGEST_BYTES:
            why = f"{why}; {size / 2**30:.1f} GiB of weights are too many to try another"
        else:
            name, why = _remembered(files, artifact, (name, *rivals), why, threads)
    return name, why


def computed_in(files: NetworkFiles) -> str:
    """What a CPU backend must have for a network: int8 between float16 layers needs float16 too."""
    return files.precision if files.contract.precision == "fp32" else files.contract.precision


def _remembered(
    files: NetworkFiles, artifact: Artifact, names: tuple[str, ...], why: str, threads: int | None
) -> tuple[str, str]:
    """Name and reason, found before or now; the first of `names` and `why` where nothing can be kept."""
    path = cache_folder() / KEPT
    versions = [version_of(package) for package in ("pfdiff", *names)]
    key = content_key(
        network_digest(artifact), artifact.precision, artifact.batch[0], names, versions, processor(), cores()
    )
    found = _kept(Journal(path), key, names)
    if found is None:
        try:
            make_private(path.parent)
            # Of two that load at once one measures, the other finds what it found.
            with locked(path.parent, say=lambda line: warnings.warn(line, RuntimeWarning, stacklevel=6)):
                journal = Journal(path)
                found = _kept(journal, key, names) or _fastest(files, names, why, artifact.batch[0], threads)
                if found:
                    journal.put(key, found)
                    found = _kept(Journal(path), key, names)  # none where it could not be kept
        except (OSError, InputError):
            found = None
    return found or (names[0], why)


def _kept(journal: Journal, key: str, names: tuple[str, ...]) -> tuple[str, str] | None:
    """What a former load found; None where there is nothing, or nothing that makes sense."""
    match journal.get(key):
        case [str(name), str(reason)] if name in names:
            return name, reason
        case _:
            return None


def _fastest(
    files: NetworkFiles, names: tuple[str, ...], why: str, batch: int, threads: int | None
) -> tuple[str, str] | None:
    """The fastest of `names` that runs the network, and why; the first is the default. None if the default fails."""
    default, buffers = names[0], list[Buffers]()  # which live as long as what is bound to them
    evaluations: dict[str, Evaluate] = {}
    awake: dict[str, float] = {}
    with ExitStack() as stack:
        for name in names:
            try:
                check_precision(name, computed_in(files))
                backend = open_backend(name, files, threads)
                stack.callback(backend.close)
                buffers.append(Buffers.of(files.contract, batch, backend.dtype))
                (evaluate,) = backend.bind(buffers[-1:])
                awake[name] = awake_ms(evaluate)
                evaluations[name] = evaluate
            except Exception:  # whatever its library raises: stand-ins may be no inputs that the network takes
                if name == default:
                    return None
            if name == default and awake[name] < LEAST_MS:
                return name, f"{why}; {awake[name]:.2g} ms an evaluation are too few to gain by another"
        if len(evaluations) == 1:
            return default, why
        times = dict.fromkeys(evaluations, np.inf)
        for name in [*evaluations] * TURNS:
            time.sleep(QUIET_S)
            times[name] = min(times[name], turn_ms(evaluations[name], awake[name]))
    best = min(times, key=times.__getitem__)
    figures = ", ".join(f"{name} {ms:.3g} ms" for name, ms in times.items())
    return best if times[best] < GAIN * times[default] else default, f"timed here at batch {batch}: {figures}"


def awake_ms(evaluate: Evaluate) -> float:
    """Milliseconds of an evaluation right after another; the first of all allocates."""
    evaluate()
    times = [time.perf_counter()]
    while len(times) < 4 and times[-1] < times[0] + TURN_S:
        evaluate()
        times.append(time.perf_counter())
    return 1e3 * float(np.diff(times).min())


def turn_ms(evaluate: Evaluate, awake_ms: float) -> float:
    """Milliseconds of an evaluation: the mean of some in a row, the least of the rows of a turn."""
    count = max(1, min(EVALUATIONS, int(1e3 * TURN_S / awake_ms)))
    least, end = np.inf, time.perf_counter() + TURN_S
    while True:
        time.sleep(PAUSE_S)
        before = time.perf_counter()
        for _ in range(count):
            evaluate()
        now = time.perf_counter()
        least = min(least, 1e3 * (now - before) / count)
        if now > end:
            return least
