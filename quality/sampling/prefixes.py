"""Which evaluations two programs have in common, and their answers.

Evaluation n of a program is told by the times asked so far and the rows y_0 ... y_n of its table over the answers, to
nine digits. Two programs with the same key there ask the network the same, whatever they do later.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import final

import numpy as np
from numpy.typing import NDArray

from ...engine.compiler.program import Program

LONGEST = 24  # evaluations of a program that are told apart; a reference shares its first alone
KEPT_BYTES = 256 << 20


def prefixes(program: Program, rows: NDArray[np.intp]) -> list[bytes]:
    """A key for each evaluation of the samples `rows` that others may share, in order; the first one at least.

    The first does not depend on clip: what is kept is the network's output.
    """
    place = hashlib.sha256(rows.tobytes())
    count = program.nfe if program.nfe <= LONGEST and not program.noises else 1
    unit = np.eye(count + 1)
    states = program.init[:, None] * unit[0]
    keys = []
    for n in range(count):
        row = states[0, : n + 1]
        scale = float(np.max(np.abs(row))) or 1.0
        asked = [program.network_times[n], program.c_in[n] * scale]
        place.update(np.array([f"{value:.9e}" for value in asked]).tobytes())
        place.update((np.round(row / scale, 9) + 0.0).tobytes())
        keys.append(place.digest())
        if program.keeps_eps:
            place.update(f"own {program.U[n].tolist()}".encode())
        if program.clip is not None:
            place.update(f"{program.clip} {program.p[n]:.9e} {program.q[n]:.9e}".encode())
        states = program.W[n] @ states + program.w[n][:, None] * unit[n + 1]
    return keys


@final
class Answers:
    """Outputs by key, the ones not asked for longest forgotten beyond KEPT_BYTES."""

    def __init__(self) -> None:
        self._held: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._bytes = 0

    def get(self, key: bytes | None) -> NDArray[np.float32] | None:
        if key is None or key not in self._held:
            return None
        self._held.move_to_end(key)
        return self._held[key]

    def kept(self, key: bytes | None, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """`out`, remembered where it has a key."""
        if key is not None and out.nbytes <= KEPT_BYTES:
            self._held[key] = out
            self._bytes += out.nbytes
            while self._bytes > KEPT_BYTES:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
        return out
