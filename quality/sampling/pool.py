"""Programs run on a pool of seeds, in NumPy, with every network evaluation counted.

The search needs what the runtimes hide: to run part of a program, to go on from a stored state, and to share work.
All programs that start at one time ask the same first question, so its answer is kept: 1 of N evaluations is free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from ...engine.compiler.program import Program
from ...engine.errors import InputError
from ...engine.philox import fill_numpy, parse_seeds

Floats = NDArray[np.float32]
Rows = NDArray[np.intp]
# network(x [m, *shape], time, rows [m]) -> prediction [m, *shape]; rows: which samples of the pool these are. `time` is
# a program's network time, and x has its c_in applied.
Evaluate = Callable[[Floats, float, Rows], Floats]


@final
class Pool:
    """Noise float32 [n, *shape] of n seeds, and the network that answers for them.

    States are float32 [B, m, elements]: m of the pool's samples, named by their rows.
    """

    def __init__(self, network: Evaluate, noise: Floats, seeds: Sequence[int] | None = None) -> None:
        self.noise: Floats = np.ascontiguousarray(noise.reshape(len(noise), -1))
        self.shape = noise.shape[1:]
        self._network = network
        self._seeds = None if seeds is None else parse_seeds(seeds)  # of what stochastic programs draw
        self._first: dict[tuple[float, float, bytes], Floats] = {}

    def __len__(self) -> int:
        return len(self.noise)

    def cost(self, program: Program, rows: Rows, seen: set[tuple[float, float, bytes]]) -> int:
        """Evaluations that `sample` takes; the first one is free when a program of `seen` asked it."""
        key = self._key(program, rows)
        free = key in seen
        seen.add(key)
        return (program.nfe - free) * len(rows)

    def start(self, program: Program, rows: Rows) -> Floats:
        """The states before the first evaluation. Raises InputError for a stochastic program without seeds."""
        if program.noises and self._seeds is None:
            raise InputError(stochastic_refused(program))
        return program.init.astype(np.float32)[:, None, None] * self.noise[rows]

    def answer(self, program: Program, n: int, state: Floats, rows: Rows) -> Floats:
        """z_n [m, elements] for s_0 [m, elements]: the network's output, or with clip the clamped x0."""
        return self._clipped(program, n, state, self._output(program, n, state, rows))

    def first_answer(self, program: Program, rows: Rows) -> Floats:
        """z_0; the network's output is kept for the next program that asks the same, whatever its clip."""
        state = self.start(program, rows)[0]
        key = self._key(program, rows)
        if key not in self._first:
            if len(self._first) >= 32:
                self._first.pop(next(iter(self._first)))
            self._first[key] = self._output(program, 0, state, rows)
        return self._clipped(program, 0, state, self._first[key])

    def _output(self, program: Program, n: int, state: Floats, rows: Rows) -> Floats:
        x = (np.float32(program.c_in[n]) * state).reshape(len(rows), *self.shape)
        return self._network(x, float(program.network_times[n]), rows).reshape(state.shape)

    def _clipped(self, program: Program, n: int, state: Floats, out: Floats) -> Floats:
        if program.clip is None:
            return out
        with np.errstate(all="ignore"):  # what is not finite shows in the error
            x_0 = np.float32(program.p[n]) * state + np.float32(program.q[n]) * out
        return np.clip(x_0, -program.clip, program.clip).astype(np.float32)

    def sample(self, program: Program, rows: Rows, before: Callable[[int], None] | None = None) -> Floats:
        """Samples [m, elements]. before(m) is called before each evaluation, and may end the run by an exception."""
        states = self.start(program, rows)
        for n in range(program.nfe):
            if before:
                before(len(rows))
            z = self.first_answer(program, rows) if n == 0 else self.answer(program, n, states[0], rows)
            states = update(program.W[n], program.w[n], states, z)
            if n in program.draws:
                states += program.V[n].astype(np.float32)[:, None, None] * self._draw(n, rows)
        return states[0]

    def _draw(self, n: int, rows: Rows) -> Floats:
        """The noise after evaluation n [m, elements], of the samples' seeds."""
        assert self._seeds is not None
        xi = np.empty((len(rows), self.noise.shape[1]), np.float32)
        fill_numpy(xi, self._seeds[rows], n + 1)
        return xi

    def _key(self, program: Program, rows: Rows) -> tuple[float, float, bytes]:
        return float(program.network_times[0]), float(program.c_in[0] * program.init[0]), rows.tobytes()


def stochastic_refused(program: Program) -> str:
    """Why a search by the error to a reference takes no such program, in one line."""
    return (
        f"{program.solver} draws noise on the way, so its error to a reference has no meaning; "
        "take a solver such as ddim, or metric fd"
    )


def update(W: NDArray[np.floating], w: NDArray[np.floating], states: Floats, z: Floats) -> Floats:
    """s_j <- sum_i W[j, i] s_i + w[j] z, all j at once; states [B, m, elements], z [m, elements]."""
    after = np.zeros_like(states)
    with np.errstate(all="ignore"):  # what is not finite shows in the error
        for j in range(len(states)):
            for i in np.flatnonzero(W[j]):
                after[j] += np.float32(W[j, i]) * states[i]
            if w[j]:
                after[j] += np.float32(w[j]) * z
    return after
