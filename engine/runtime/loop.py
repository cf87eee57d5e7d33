"""What executes a program on one batch: the tables it reads, what it is given, and the interface of every loop.

`host_loop` runs on the CPU, `graph` on a CUDA device; `session` cuts requests into batches for either.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from ..compiler.program import Program
from ..contract import Contract

TORCH_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}


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


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """For tensors that outlive the caller's `torch.inference_mode`, outside of which those made inside are read-only.

    They stand on the CPU unless another device is named, whatever the caller's default is.
    """
    with torch.inference_mode(False), torch.device("cpu"):
        yield


def fill(buffer: torch.Tensor, values: torch.Tensor) -> None:
    """The first rows of `buffer` from `values`, the rest repeats its last row, so that padding is valid data.

    Values on the host reach a CUDA buffer through pinned memory of our own, so the host does not wait for the device.
    `Tensor.pin_memory` would hand back what the caller has pinned already, and may change before it has been read.
    """
    count = len(values)
    if buffer.is_cuda and not values.is_cuda:
        values = torch.empty(values.shape, dtype=buffer.dtype, device="cpu", pin_memory=True).copy_(values)
    buffer[:count].copy_(values, non_blocking=True)
    if count < len(buffer):
        buffer[count:] = buffer[count - 1]


def from_numpy(values: NDArray[np.generic]) -> torch.Tensor:
    """A tensor on the memory of an array, which is copied when it is read-only (torch would warn)."""
    return torch.from_numpy(values if values.flags.writeable else values.copy())
