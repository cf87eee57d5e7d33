"""A policy in a control loop: one observation in, one action out, every tick (receding horizon).

    with pfdiff.load("gates.engine") as engine:
        control = pfdiff.Controller(engine, nfe=4)
        while running:
            robot.move(control.act(robot.observe()))          # action float32 [size]

A chunk of `policy.count` actions is sampled from the last `policy.steps` observations, carried out, and sampled anew.
With `strength` a chunk starts from the former one moved on by the ticks that have passed, its last action repeated: at
the time where `strength` of the way is left, x_t = alpha_t x_0 + sigma_t eps, as a picture that is changed a little.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from .api import Engine
from .errors import InputError
from .json_fields import is_integer
from .runtime.policy import observation_values

LARGEST_SEED = 1 << 64


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


@final
class Controller:
    """Drives an engine that is a policy; the engine stays the caller's.

    nfe: of each chunk; may be left out when the engine has one program. deadline_ms: in its place, the largest NFE that
    fits, measured now (`Engine.nfe_within`). every: actions that are carried out of a chunk, at most as many as the
    horizon holds; None means the policy's own count. strength: None samples each chunk from noise. seed: of the first
    chunk, the next has the next. robots: None for one, or how many are controlled side by side; observations and
    actions then begin with that dimension.
    Raises InputError.
    """

    def __init__(
        self,
        engine: Engine,
        nfe: int | None = None,
        *,
        deadline_ms: float | None = None,
        every: int | None = None,
        strength: float | None = None,
        seed: int = 0,
        robots: int | None = None,
    ) -> None:
        if not isinstance(engine, Engine):
            raise InputError(f"got {type(engine).__name__}, expected an engine, as pfdiff.load gives")
        if engine.policy is None:
            raise InputError(f"engine '{engine.path}' is no policy; build it with observations (policy=)")
        self.policy = engine.policy
        most = engine.contract.shape[0] - self.policy.first
        self.every = self.policy.count if every is None else every
        if not (is_integer(self.every) and 1 <= self.every <= most):
            raise InputError(f"every={every!r}, expected a number of actions in 1..{most}")
        if robots is not None and not (is_integer(robots) and robots >= 1):
            raise InputError(f"robots={robots!r}, expected a number of at least 1, or None for one")
        if strength is not None and not (_is_real(strength) and 0 < strength <= 1):
            raise InputError(f"strength={strength!r}, expected a number above 0 and at most 1, or None")
        self._many, self.robots = robots is not None, robots or 1
        if deadline_ms is not None:
            if nfe is not None:
                raise InputError("got both nfe and deadline_ms, expected one of them")
            nfe = engine.nfe_within(deadline_ms, self.robots)
        engine.tick_call(nfe, self.robots)  # refuses an NFE that the engine does not have
        self.nfe = nfe
        self._engine = engine
        self._strength = strength
        self.reset(seed)

    def reset(self, seed: int = 0) -> None:
        """Forget observations and actions: at the start of an episode. Raises InputError for what is no seed."""
        if not (is_integer(seed) and 0 <= seed < LARGEST_SEED):
            raise InputError(f"seed={seed!r}, expected an integer in [0, 2^64)")
        self._seed = seed
        self._history: list[dict[str, NDArray[Any]]] = []
        self.chunk: torch.Tensor | None = None  # float32 [robots, horizon, size], the last that was sampled
        self._next = 0

    def act(self, observation: Any) -> NDArray[np.float32]:
        """The action float32 [size] of this tick; with `robots` [robots, size].

        observation: of this tick alone, an array, or a dictionary of arrays by name; of the shapes that the policy
        observes without their first dimension. Raises InputError, BackendError; a tick that fails leaves no trace.
        """
        history = self._with(observation)
        if self.chunk is None or self._next == self.every:
            self._sample(history)
        self._history = history
        assert self.chunk is not None
        action = self.chunk[:, self.policy.first + self._next].cpu().numpy().copy()
        self._next += 1
        return action if self._many else action[0]

    def _with(self, observation: Any) -> list[dict[str, NDArray[Any]]]:
        """The last observations, with this tick's. Raises InputError."""
        names = [one.name for one in self.policy.observations]
        if not isinstance(observation, Mapping):
            if self.policy.encoder is not None and len(names) > 1:
                raise InputError(
                    f"observation: got {type(observation).__name__}, expected a dictionary of {', '.join(names)}"
                )
            joined = [(self.policy.steps, sum(one.shape[-1] for one in self.policy.observations))]
            shapes = [one.shape for one in self.policy.observations] if len(names) == 1 else joined
            names = names[:1]
            observation = {names[0]: observation}
        else:
            shapes = [one.shape for one in self.policy.observations]
            if set(observation) != set(names):
                got = ", ".join(map(str, observation)) or "nothing"
                raise InputError(f"observation: got {got}, this policy observes {', '.join(names)}")
        found = {}
        for name, shape in zip(names, shapes, strict=True):
            expected = (*([self.robots] if self._many else []), *shape[1:])
            value = observation_values(name, observation[name], expected)
            if value.shape != expected:
                raise InputError(f"observation '{name}': got shape {list(value.shape)}, expected {list(expected)}")
            found[name] = value if self._many else value[None]
        if len(found) > 1 and self.policy.encoder is None:  # one array, as it may be given too
            found = {names[0]: np.concatenate(list(found.values()), axis=-1)}
        return [*(self._history or [found] * (self.policy.steps - 1)), found][-self.policy.steps :]

    def _sample(self, history: list[dict[str, NDArray[Any]]]) -> None:
        """The next chunk, from the last observations."""
        given = {name: np.stack([one[name] for one in history], axis=1) for name in history[0]}
        whole: Any = given if len(given) > 1 or len(self.policy.observations) == 1 else next(iter(given.values()))
        options: dict[str, Any] = {}
        if self._strength is not None and self.chunk is not None:
            ahead = torch.arange(self.chunk.shape[1], device=self.chunk.device) + self._next
            options = {
                "image": self.chunk[:, ahead.clamp(max=self.chunk.shape[1] - 1)],
                "strength": float(self._strength),
            }
        seeds = [(self._seed + n) % LARGEST_SEED for n in range(self.robots)]
        self.chunk = self._engine.sample(seeds=seeds, nfe=self.nfe, observation=whole, **options)
        self._seed = (self._seed + self.robots) % LARGEST_SEED
        self._next = 0
