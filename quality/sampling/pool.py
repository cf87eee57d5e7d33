"""Programs run on a pool of seeds, in NumPy, with every network evaluation counted.

The search needs what the runtimes hide: to run part of a program, to go on from a stored state, and to share work.
Programs that have done the same so far ask the same next question, so answers are kept (prefixes.py): all that start at
one time share the first, multistep methods on one grid the first two, and a grid with one time moved all before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from ...engine.compiler.program import Program
from ...engine.errors import InputError
from ...engine.philox import fill_numpy, parse_seeds
from .prefixes import Answers, prefixes

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
        self._answers = Answers()

    def __len__(self) -> int:
        return len(self.noise)

    def part(self, count: int) -> Pool:
        """The first `count` samples, with answers of its own."""
        few = Pool(self._network, self.noise[:count].reshape(count, *self.shape))
        few._seeds = None if self._seeds is None else self._seeds[:count]
        return few

    def cost(self, program: Program, rows: Rows, seen: set[bytes]) -> int:
        """Evaluations that `sample` takes; those that begin as a program of `seen` did are free."""
        keys = prefixes(program, rows)
        known = sum(key in seen for key in keys)
        seen.update(keys)
        return (program.nfe - known) * len(rows)

    def start(self, program: Program, rows: Rows) -> Floats:
        """The states before the first evaluation. Raises InputError for a stochastic program without seeds."""
        if program.noises and self._seeds is None:
            raise InputError(stochastic_refused(program))
        return program.init.astype(np.float32)[:, None, None] * self.noise[rows]

    def answer(self, program: Program, n: int, state: Floats, rows: Rows) -> Floats:
        """z_n [m, elements] for s_0 [m, elements]: the network's output, or with clip the clamped x0."""
        return self._clipped(program, n, state, self._output(program, n, state, rows))

    def _output(self, program: Program, n: int, state: Floats, rows: Rows) -> Floats:
        x = (np.float32(program.c_in[n]) * state).reshape(len(rows), *self.shape)
        return self._network(x, float(program.network_times[n]), rows).reshape(state.shape)

    def _clipped(self, program: Program, n: int, state: Floats, out: Floats) -> Floats:
        if program.clip is None:
            return out
        with np.errstate(all="ignore"):  # what is not finite shows in the error
            x_0 = np.float32(program.p[n]) * state + np.float32(program.q[n]) * out
        return np.clip(x_0, -program.clip, program.clip).astype(np.float32)

    def sample(
        self,
        program: Program,
        rows: Rows,
        before: Callable[[int], None] | None = None,
        way: list[Floats] | None = None,
    ) -> Floats:
        """Samples [m, elements]. before(m) is called before each evaluation, and may end the run by an exception.

        way: gets s_0 and z of each evaluation in turn, [m, elements] each.
        """
        states, keys = self.start(program, rows), prefixes(program, rows)
        for n in range(program.nfe):
            if before:
                before(len(rows))
            key = keys[n] if n < len(keys) else None
            out = self._answers.get(key)
            if out is None:
                out = self._answers.kept(key, self._output(program, n, states[0], rows))
            z = self._clipped(program, n, states[0], out)
            if way is not None:
                way += [states[0], z]
            states = update(program.W[n], program.w[n], states, z)
            if program.keeps_eps:
                states += program.U[n].astype(np.float32)[:, None, None] * out
            if n in program.draws:
                states += program.V[n].astype(np.float32)[:, None, None] * self._draw(n, rows)
        return states[0]

    def _draw(self, n: int, rows: Rows) -> Floats:
        """The noise after evaluation n [m, elements], of the samples' seeds."""
        assert self._seeds is not None
        xi = np.empty((len(rows), self.noise.shape[1]), np.float32)
        fill_numpy(xi, self._seeds[rows], n + 1)
        return xi


def stochastic_refused(program: Program) -> str:
    """Why a search by the error to a reference takes no such program, in one line."""
    return (
        f"{program.solver} draws noise on the way, so its error to a reference has no meaning; "
        "take a solver such as ddim, or the metric fd of tune"
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
