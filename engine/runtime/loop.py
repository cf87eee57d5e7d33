"""What executes a program on batches: the tables it reads and the interface of both loops.

`cpu_loop` runs on the CPU, `cuda.loop` on a CUDA device; `session` cuts requests into batches for either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from ..compiler.program import Program
from ..contract.contract import Contract
from .decoder import LoadedDecoder
from .inputs import Inputs
from .pictures.masked import known_factors

Chunk = tuple[int, int]  # samples, and the bucket whose buffers take them


@final
@dataclass(frozen=True, eq=False)
class Tables:
    """A program as a loop reads it; coefficients float32, the one cast.

    update [N, B, B + 1] = (W | w); init [B]; p, q, c_in [N]; times [N] in the network's dtype, scaled; clip or None;
    V [N, B] of the noises, which are drawn after the evaluations `draws`; U [N, B] of the network's output beside the
    clipped x0, None for most programs. mixed: sampling starts from a picture.
    `program` is what they were made of.
    """

    program: Program
    nfe: int
    buffers: int
    update: NDArray[np.float32]
    init: NDArray[np.float32]
    p: NDArray[np.float32]
    q: NDArray[np.float32]
    c_in: NDArray[np.float32]
    times: NDArray[np.generic]
    clip: float | None
    V: NDArray[np.float32]
    draws: tuple[int, ...]
    U: NDArray[np.float32] | None = None
    mixed: bool = False

    @cached_property
    def scaled(self) -> bool:
        """Whether some c_in differs from 1, so that the network needs an input of its own."""
        return bool((self.c_in != 1).any())

    @cached_property
    def adds(self) -> bool:
        """Whether an update adds more than `update` says: noise, or the network's output as it is."""
        return bool(self.draws) or self.U is not None

    @cached_property
    def known(self) -> NDArray[np.float32]:
        """[N, 2], for masks: see `known_factors`."""
        return known_factors(self.program, mixed=self.mixed).astype(np.float32)


def make_tables(program: Program, contract: Contract, *, mixed: bool = False) -> Tables:
    """The tables of `program` for the network of `contract`. Raises InputError when its times cannot be fed."""
    return Tables(
        program=program,
        nfe=program.nfe,
        buffers=program.buffers,
        update=np.concatenate([program.W, program.w[:, :, None]], axis=2).astype(np.float32),
        init=program.init.astype(np.float32),
        p=program.p.astype(np.float32),
        q=program.q.astype(np.float32),
        c_in=program.c_in.astype(np.float32),
        times=contract.feed_times(program.network_times),
        clip=program.clip,
        V=program.V.astype(np.float32),
        draws=program.draws,
        U=program.U.astype(np.float32) if program.keeps_eps else None,
        mixed=mixed,
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
    def run(self, tables: Tables, chunks: Sequence[Chunk], inputs: Inputs, *, pixels: bool) -> torch.Tensor:
        """Sample all of `inputs` in the batches of `chunks`: float32 [m, *shape], or with `pixels` uint8 [m, H, W, C].

        On a CUDA device this returns before the device is done. Raises BackendError.
        """

    @abstractmethod
    def floor(self, tables: Tables, size: int) -> Callable[[], None]:
        """The program's evaluations of the network and nothing else, on the order of the current stream like `run`."""

    @abstractmethod
    def updates(self, tables: Tables, size: int) -> Callable[[], None]:
        """The program's updates and nothing else, on buffers of their own, ordered like `run`."""

    @abstractmethod
    def wrap(self, launch: Callable[[], None]) -> Callable[[], None]:
        """`launch` started as `floor` and `updates` are: ordered like `run`, captured where schedules are."""

    @abstractmethod
    def wait(self) -> None:
        """Return when everything that was run is done."""

    @abstractmethod
    def clear(self) -> None:
        """Free the buffers."""


def slices(chunks: Sequence[Chunk]) -> Iterator[tuple[slice, int]]:
    """The samples of each chunk, and its bucket."""
    start = 0
    for size, bucket in chunks:
        yield slice(start, start + size), bucket
        start += size


def result_shape(contract: Contract, decoder: LoadedDecoder | None, *, pixels: bool) -> tuple[int, ...]:
    """Of one sample, or with `pixels` of one picture [H, W, C] or video [frames, H, W, C]."""
    if not pixels:
        return contract.shape
    channels, *sides = decoder.contract.image if decoder else contract.shape
    return *sides, channels


def as_pictures(pixels: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of pixels and x as [b, H, W, C] and [b, C, H, W]: a video's frames stand one above the other."""
    return (pixels, x) if x.dim() == 4 else (pixels.flatten(1, -3), x.flatten(2, -2))
