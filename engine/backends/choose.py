"""The backend that runs an engine: the one asked for, or with "auto" the best that works on the device."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch

from .. import machine
from ..artifact import WEIGHT_BITS, Artifact
from ..contract.contract import QUANTISED, AnyContract
from ..device import capability, why_not_cuda
from ..errors import BackendError, first_line
from .abstract import Backend, Buffers, Evaluate, NetworkFiles
from .fastest import TIMED, choose_fastest, computed_in
from .registry import (
    ON_CUDA,
    TENSORRT,
    check_backend,
    check_precision,
    choose_backend,
    is_installed,
    open_backend,
    why_not,
)

LEAST_FP8 = 89  # compute capability from which tensor cores have float8


def check_runnable(name: str, precision: str, module: object, device: torch.device | None) -> None:
    """Raises InputError or BackendError when `name` ("auto") cannot run `precision` on `device` (None: any here).

    Cheap: nothing is loaded, so that a build fails before it exports.
    """
    check_backend(name)
    problem = ""
    gpu = _first_gpu() if device is None and not why_not_cuda() else device
    if gpu is not None and gpu.type == "cpu":
        gpu = None
    if gpu is not None:
        asked = ON_CUDA if name == "auto" else (name,)
        chip = capability(gpu)
        reasons = {one: why_not(one, module, gpu) or why_no_eight_bits(one, precision, chip) for one in asked}
        if not all(reasons.values()):
            return
        problem = "; ".join(f"{one}: {why}" for one, why in reasons.items())
        if device is not None:
            raise BackendError(f"no backend runs this engine on {device}: {problem}")
    if name in TENSORRT and problem:
        raise BackendError(f"backend '{name}' cannot run here: {problem}")
    check_precision(choose_backend(precision)[0] if name == "auto" else name, precision)


def open_best(files: NetworkFiles, device: torch.device | None, name: str, threads: int | None) -> tuple[Backend, str]:
    """The backend `name`, or with "auto" the best that works on `device` (None: a GPU if one works, else the CPU).

    Also why, in one line. Raises InputError, BackendError when none works; each is named with its reason.
    """
    check_backend(name)
    if device is not None and device.type == "cuda":
        return _open_on_cuda(files, device, name, threads)
    refused = ""
    if device is None and name != "openvino" and not why_not_cuda():
        try:
            return _open_on_cuda(files, _first_gpu(), name, threads)
        except BackendError as error:
            refused = f"the GPU is not used: {error}"
            if name in TENSORRT:
                raise
            warnings.warn(refused, RuntimeWarning, stacklevel=3)
    warn_of_overflow(files.artifact)
    if name == "auto":
        opened, reason = _open_fastest(files, threads)
    else:
        opened, reason = open_backend(name, files, threads, torch.device("cpu")), "asked for"
    return opened, "; ".join(filter(None, (reason, refused)))


def _open_fastest(files: NetworkFiles, threads: int | None) -> tuple[Backend, str]:
    """The fastest on this CPU, or another where its library refuses the network; and why. Raises its BackendError."""
    name, reason = choose_fastest(files, threads)
    cpu = torch.device("cpu")
    try:
        return open_backend(name, files, threads, cpu), reason
    except BackendError as error:
        is_refused = str(error).startswith(f"{name} refuses")  # or the engine itself is at fault
        for other in TIMED if is_refused else ():
            if other == name or not is_installed(other):
                continue
            with contextlib.suppress(BackendError):
                check_precision(other, computed_in(files))
                return open_backend(other, files, threads, cpu), first_line(error)
        raise


def warn_of_overflow(artifact: Artifact | None) -> None:
    """A warning for int8 weights that this CPU's 16-bit sums of two products are too small for."""
    if artifact is not None and artifact.provenance.get(WEIGHT_BITS) == 8 and machine.adds_in_16_bits():
        warnings.warn(
            f"engine '{artifact.path}' has int8 weights of 8 bits, and this CPU, which has no VNNI, may overflow where "
            "it adds two products in 16 bits; build it again here from its float32 network, which takes 7 bits",
            RuntimeWarning,
            stacklevel=4,
        )


def why_no_eight_bits(name: str, precision: str, chip: str) -> str:
    """Why a backend has no int8 or fp8 on a GPU of capability `chip` (sm89), in one clause; empty when it has."""
    if precision not in QUANTISED:
        return ""
    if name == "torch":
        return f"it has no {precision}"
    if precision == "fp8" and int(chip.removeprefix("sm")) < LEAST_FP8:
        return f"fp8 needs compute capability 8.9, {chip} has none; build with int8 or fp16"
    return ""


@final
@dataclass(frozen=True, eq=False)
class Beside:
    """Opens the other networks of an engine where its own is open: same device, same stream, what was asked for."""

    network: NetworkFiles
    device: torch.device
    backend: str
    threads: int | None

    @classmethod
    def of(cls, network: NetworkFiles, opened: Backend, backend: str, threads: int | None) -> Beside:
        """backend, threads: as they were asked for `network`; torch, which needs a module for each, becomes auto."""
        files = replace(network, module=None, stream=opened.stream)
        return cls(files, opened.device, "auto" if backend == "torch" else backend, threads)

    def open(self, what: str, onnx: Path, contract: AnyContract, batch: int) -> tuple[Backend, Buffers, Evaluate]:
        """The network in `onnx`, bound to buffers of one bucket. Raises BackendError that begins with `what`."""
        files = replace(self.network, onnx=onnx, contract=contract)
        try:
            backend, _ = open_best(files, self.device, self.backend, self.threads)
        except BackendError as error:
            raise BackendError(f"{what}: {error}") from None
        buffers = Buffers.of(contract, batch, backend.dtype, backend.device)
        (evaluate,) = backend.bind([buffers])
        return backend, buffers, evaluate


def _first_gpu() -> torch.device:
    return torch.device("cuda", 0)


def _open_on_cuda(files: NetworkFiles, device: torch.device, name: str, threads: int | None) -> tuple[Backend, str]:
    if name != "auto":
        problem = why_not(name, files.module, device)
        if problem:
            raise BackendError(f"backend '{name}' on {device}: {problem}")
        return open_backend(name, files, threads, device), "asked for"
    skipped: list[str] = []
    for one in ON_CUDA:
        problem = why_not(one, files.module, device)
        if not problem:
            try:
                opened = open_backend(one, files, threads, device)
            except Exception as error:  # whatever its library raises: the next may work
                problem = first_line(error)
            else:
                return opened, "; ".join([f"the best that works on {device}", *skipped])
        skipped.append(f"{one}: {problem}")
    raise BackendError(f"no backend runs this engine on {device}: {'; '.join(skipped)}")
