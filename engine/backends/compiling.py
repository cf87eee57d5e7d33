"""A module through torch.compile, and the module itself from the first failure on.

Compilation fuses what stands between convolutions and products, and leaves out the copies between layouts that
GroupNorm of PyTorch makes for channels-last tensors. It happens at the first call of each batch size. Its results are
kept in the cache folder, so it takes its time once for each network, batch size, GPU and version of torch.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import final

import torch

from ...kernels.launch import why_not_triton
from ..cache import Journal, cache_folder, content_key
from ..errors import InputError, first_line
from .abstract import NetworkFiles

MODE = "max-autotune-no-cudagraphs"  # the whole schedule is captured by us
KEPT = "compiled.jsonl"  # which networks were compiled here: the next load says nothing

Function = Callable[..., torch.Tensor]


def compiled(module: Function, files: NetworkFiles, device: torch.device) -> Function:
    """`module` as `options.compile` wants it; by default compiled if it is an nn.Module and a GPU's compiler works.

    Announces in one line what the first load costs.
    """
    wanted = files.options.compile
    if wanted is None:
        wanted = device.type == "cuda" and isinstance(module, torch.nn.Module) and not why_not_triton(device)
    if not wanted:
        return module
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))  # torch's own is lost at a boot
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    key = content_key(files.contract.to_dict(), torch.__version__, gpu)
    journal = Journal(cache_folder() / KEPT)
    if journal.get(key) is None:
        warnings.warn(
            f"backend 'torch' compiles '{files.contract.name}' at the first call of each batch size, which can take "
            f"minutes and is kept in '{os.environ['TORCHINDUCTOR_CACHE_DIR']}'; CudaOptions(compile=False) does not",
            RuntimeWarning,
            stacklevel=6,
        )
    return Compiled(module, journal, key, strict=files.options.compile is True)


def compiled_like(first: Function, other: Function) -> Function:
    """`other`, a part of the network `first`, compiled if that is. Its first call is a further compilation."""
    return first.of(other) if isinstance(first, Compiled) else other


@final
class Compiled:
    """The compiled module; where that was not asked for by name, a failure makes room for the module as it is."""

    def __init__(self, module: Function, journal: Journal, key: str, *, strict: bool) -> None:
        self._module = module
        self._compiled: Function | None = torch.compile(module, dynamic=False, mode=MODE)
        self._journal = journal
        self._key = key
        self._strict = strict

    def of(self, other: Function) -> Compiled:
        """Another function with the same settings."""
        return Compiled(other, self._journal, self._key, strict=self._strict)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        if self._compiled is None:
            return self._module(*inputs)
        try:
            out = self._compiled(*inputs)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the compiler or the user's module raises
            if self._strict or torch.cuda.is_current_stream_capturing():  # what fails in a capture worked before it
                raise
            out = self._module(*inputs)  # what is wrong with the module itself is said by itself
            self._compiled = None
            warnings.warn(
                f"torch.compile refuses the network ({type(error).__name__}: {first_line(error)}); it runs as it is, "
                "slower; CudaOptions(compile=False) does without this try",
                RuntimeWarning,
                stacklevel=2,
            )
            return out
        self._remember()
        return out

    def _remember(self) -> None:
        if self._key:
            try:
                if self._journal.get(self._key) is None:
                    self._journal.put(self._key, torch.__version__)
            except InputError:  # no place to keep it: the next load says again what it costs
                pass
            self._key = ""
