"""What a backend is: one network, loaded once, evaluated on buffers that stay where they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from ..contract.contract import AnyContract, Contract
from ..errors import BackendError
from ..progress import BuildProgress
from ..tensors import TORCH_DTYPES, from_numpy, lasting
from .guided import UnitScale

if TYPE_CHECKING:
    from ..artifact import Artifact

    # module(x, t, *conditions) -> out, the conditions in the order of the contract; a decoder's (latents) -> image
    Module = Callable[..., torch.Tensor]

# Runs the network once and returns the tensor [batch, *output_shape], contiguous, that holds the output.
Evaluate = Callable[[], torch.Tensor]
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class CudaOptions:
    """What a caller may choose about a CUDA backend; a CPU ignores it.

    tf32     fp32 networks may round products to TF32's 10 bits of mantissa
    compile  backend torch: through torch.compile; None if the network is an nn.Module and Triton works
    trust    load a TensorRT plan that this user did not build; a plan is executable code
    graph    capture the whole schedule in one CUDA graph; False launches kernel by kernel
    """

    tf32: bool = False
    compile: bool | None = None
    trust: bool = False
    graph: bool = True


@dataclass(frozen=True)
class NetworkFiles:
    """A network to load: the ONNX file of an engine directory and, if the caller gave it, the module itself.

    artifact: the engine, in which TensorRT's plans are kept. stream: of a CUDA device; None for a new stream.
    """

    onnx: Path
    contract: AnyContract
    module: Module | None = None
    artifact: Artifact | None = None
    options: CudaOptions = CudaOptions()
    progress: BuildProgress | None = None
    stream: torch.cuda.Stream | None = None

    @property
    def precision(self) -> str:
        """What it computes in: the engine's precision, such as int8, for its network, else the contract's."""
        whole = self.artifact is not None and isinstance(self.contract, Contract)
        return self.artifact.precision if self.artifact is not None and whole else self.contract.precision


@dataclass(frozen=True, eq=False)
class Buffers:
    """The tensors of one bucket, contiguous, on the backend's device; `conditions` in the order of the contract.

    x [batch, *shape], out [batch, *output_shape]: of `Backend.dtype`; t: [batch] or [] of the contract's time dtype,
    None where there is no time (a decoder). Of a text encoder x is int64. halved: the scale of guidance is 1 for all
    samples of these, see `Backend.unit_scale`.
    """

    x: torch.Tensor
    t: torch.Tensor | None
    conditions: tuple[torch.Tensor, ...]
    out: torch.Tensor
    halved: bool = False

    @classmethod
    def of(
        cls,
        contract: AnyContract,
        batch: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Buffers:
        """Buffers of one batch with inputs that any network takes: x 0, t 1, conditions as they are when not given.

        A condition without a default gets its least value, or 0.
        """
        with lasting():
            held = torch.int64 if contract.input_dtype == "int64" else dtype
            x = torch.zeros((batch, *contract.shape), dtype=held, device=device)
            out = torch.zeros((batch, *contract.output_shape), dtype=dtype, device=device)
            if not isinstance(contract, Contract):
                return cls(x, None, (), out)
            time_dtype = TORCH_DTYPES[contract.time_dtype]
            t = torch.ones((batch,) if contract.time_rank else (), dtype=time_dtype, device=device)
            given = contract.stand_ins
            conditions = tuple(
                from_numpy(one.values(given.get(one.name), batch)).to(device, TORCH_DTYPES[one.dtype])
                for one in contract.conditions
            )
        return cls(x, t, conditions, out)

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """All of them in the order of the contract's `inputs`."""
        return (self.x, *(() if self.t is None else (self.t,)), *self.conditions)


class Backend(ABC):
    """A loaded network. Every attribute is set by the backend's constructor.

    name              the word that `backend=` takes
    device            where its buffers live
    dtype             of x and out; what the network computes in is `description`'s to say
    threads           CPU threads it was asked for, None for its own choice
    description       library, version, precision and threads, as `pfdiff info` prints them
    bytes_per_sample  device memory that one evaluation takes for each sample of its batch; 0 where the backend has
                      allocated it already, or does not say
    stream            on a CUDA device, the stream that everything runs on; None on a CPU
    not_capturable    why its evaluations cannot be captured in a CUDA graph, once that is known; else empty
    unit_scale        where the scale of guidance is 1, if its evaluations of `halved` buffers are of the conditional
                      half alone; else None
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    threads: int | None
    description: str
    bytes_per_sample: int = 0
    stream: torch.cuda.Stream | None = None
    not_capturable: str = ""
    unit_scale: UnitScale | None = None

    @abstractmethod
    def bind(self, sets: Sequence[Buffers]) -> list[Evaluate]:
        """For each set of buffers, a function that runs the network once from its `inputs`.

        It returns the tensor that holds the output: a CPU backend's is the set's own `out`, others may keep theirs,
        which the next evaluation overwrites. Sets have one batch size and are evaluated one after the other, so they
        may share what the library needs. They must live as long as the functions; their content may change between
        calls. The functions raise whatever the library raises; the session says at which evaluation. Raises
        BackendError when the sets cannot be bound.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the network. Functions that `bind` returned may not be called any more."""


class OneByOne(Backend, Generic[Loaded]):
    """A backend that binds each set of buffers by itself. `_loaded`: what it evaluates with; None once it is closed."""

    _loaded: Loaded | None

    def bind(self, sets: Sequence[Buffers]) -> list[Evaluate]:
        if self._loaded is None:
            raise BackendError("this backend is closed; load the engine again")
        return [self._bound(self._loaded, buffers) for buffers in sets]

    @abstractmethod
    def _bound(self, loaded: Loaded, buffers: Buffers, /) -> Evaluate:
        """The function of one set."""
