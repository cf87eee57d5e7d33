"""What a backend is: one network, loaded once, evaluated on buffers that stay where they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..contract import Contract

if TYPE_CHECKING:
    import torch

    # module(x, t, *conditions) -> out, the conditions in the order of the contract
    Module = Callable[..., torch.Tensor]

Evaluate = Callable[[], None]


@dataclass(frozen=True)
class Source:
    """What there is to load: the ONNX file of an engine directory and, when somebody gave it, the module itself."""

    onnx: Path
    contract: Contract
    module: Module | None = None


@dataclass(frozen=True, eq=False)
class Buffers:
    """The tensors of one bucket, contiguous, on the backend's device; `conditions` in the order of the contract.

    x, out: [batch, *shape] of `Backend.dtype`; t: [batch] or [] of the contract's time dtype.
    """

    x: torch.Tensor
    t: torch.Tensor
    conditions: tuple[torch.Tensor, ...]
    out: torch.Tensor


class Backend(ABC):
    """A loaded network. Every attribute is set by the backend's constructor.

    name         the word that `backend=` takes
    device       where its buffers live
    dtype        of x and out; what the network computes in is `description`'s to say
    threads      CPU threads it was asked for, None for its own choice
    description  library, version, precision and threads, as `pfdiff info` prints them
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    threads: int | None
    description: str

    @abstractmethod
    def bind(self, buffers: Buffers) -> Evaluate:
        """A function that runs the network once, from `buffers.x`, `t` and `conditions` into `buffers.out`.

        The buffers must live as long as the function; their content may change between calls. It raises whatever the
        library raises; the session says at which evaluation. Raises BackendError when they cannot be bound.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the network. Functions that `bind` returned may not be called any more."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something, for a one-line message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
