"""What executes a program on one batch: the tables it reads, what it is given, and the interface of every loop.

`cpu_loop` runs on the CPU, `cuda_loop` on a CUDA device; `session` cuts requests into batches for either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from ..compiler.program import Program
from ..contract import Contract


@final
@dataclass(frozen=True, eq=False)
class Tables:
    """A program as a loop reads it; coefficients float32, the one cast.

    update [N, B, B + 1] = (W | w); init [B]; p, q, c_in [N]; times [N] in the network's dtype, scaled; clip or None.
    `program` is what they were made of.
    """

    program: Program
    update: NDArray[np.float32]
    init: NDArray[np.float32]
    p: NDArray[np.float32]
    q: NDArray[np.float32]
    c_in: NDArray[np.float32]
    times: NDArray[np.generic]
    clip: float | None

    @property
    def nfe(self) -> int:
        return len(self.update)

    @property
    def buffers(self) -> int:
        return len(self.init)

    @cached_property
    def scaled(self) -> bool:
        """Whether some c_in differs from 1, so that the network needs an input of its own."""
        return bool((self.c_in != 1).any())


def make_tables(program: Program, contract: Contract) -> Tables:
    """The tables of `program` for the network of `contract`. Raises InputError when its times cannot be fed."""
    program.check_deterministic("an engine")
    return Tables(
        program=program,
        update=np.concatenate([program.W, program.w[:, :, None]], axis=2).astype(np.float32),
        init=program.init.astype(np.float32),
        p=program.p.astype(np.float32),
        q=program.q.astype(np.float32),
        c_in=program.c_in.astype(np.float32),
        times=contract.feed_times(program.network_times),
        clip=program.clip,
    )


@final
@dataclass(frozen=True, eq=False)
class Inputs:
    """What one batch of m samples starts from: seeds uint64 [m] or noise float32 [m, elements], one of them None.

    Conditions [m, ..] in the order of the contract, on the host; noise is on the loop's device.
    """

    seeds: NDArray[np.uint64] | None
    noise: torch.Tensor | None
    conditions: Sequence[NDArray[np.generic]]

    @property
    def count(self) -> int:
        given = self.seeds if self.seeds is not None else self.noise
        return 0 if given is None else len(given)

    def part(self, which: slice) -> Inputs:
        """Some of the samples."""
        return Inputs(
            None if self.seeds is None else self.seeds[which],
            None if self.noise is None else self.noise[which],
            [values[which] for values in self.conditions],
        )


class Loop(ABC):
    """Executes programs with one backend. `device` is where results live.

    `execution` says in a few words how the schedule is run; `pfdiff info` prints it.
    """

    device: torch.device

    @property
    @abstractmethod
    def execution(self) -> str: ...

    @abstractmethod
    def empty(self, shape: Sequence[int], *, pixels: bool) -> Any:
        """Memory for `run` to write into, float32, or with `pixels` uint8: an array on the host, a tensor elsewhere."""

    @abstractmethod
    def tensor(self, result: Any) -> torch.Tensor:
        """What `empty` gave, as a tensor on its memory."""

    @abstractmethod
    def run(self, tables: Tables, size: int, inputs: Inputs, *, pixels: bool, into: Any) -> None:
        """Sample at most `size` samples with the buffers of that bucket and write them into `into` [m, ..].

        `into` is of `empty`, [m, *shape] or with `pixels` [m, H, W, C], or part of it. On a CUDA device this returns
        before the device is done. Raises BackendError.
        """

    @abstractmethod
    def floor(self, tables: Tables, size: int) -> Callable[[], None]:
        """The program's evaluations of the network and nothing else, on the order of the current stream like `run`."""

    @abstractmethod
    def updates(self, tables: Tables, size: int) -> Callable[[], None]:
        """The program's updates and nothing else, on buffers of their own, ordered like `run`."""

    @abstractmethod
    def alone(self, launch: Callable[[], None]) -> Callable[[], None]:
        """`launch` as `floor` and `updates` are run: ordered like `run`, captured where schedules are."""

    @abstractmethod
    def wait(self) -> None:
        """Return when everything that was run is done."""

    @abstractmethod
    def clear(self) -> None:
        """Free the buffers."""
