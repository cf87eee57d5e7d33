"""Engines for GPU benchmarks and tests, made in memory: no export, no file, the network by backend torch.

fashion   the shipped network, 28x28x1            cifar, latents   see `networks`            policy   see `policy`
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...engine.api import Engine
from ...engine.artifact import Artifact
from ...engine.backends.abstract import CudaOptions
from ...engine.compiler.compile import compile
from ...engine.compiler.program import Program
from ...engine.contract.condition import Condition
from ...engine.contract.contract import Contract
from ...engine.errors import EngineFileError
from ...export import zoo
from ...export.zoo.fashion import CLASSES, NO_LABEL, FashionUNet
from .networks import CIFAR, LATENTS, UNet
from .policy import ACTIONS, OBSERVATION, STEPS, PolicyUNet

LABEL = Condition("label", "int64", default=NO_LABEL, low=0, high=NO_LABEL, labels=CLASSES)
TEXT = Condition("text", "float32", (77, 768), default=0.1)
OBSERVED = Condition("observation", "float32", (OBSERVATION,), default=0.1)
CONTRACTS = {
    "policy": Contract("policy", (ACTIONS, STEPS), "cosine:100", "eps", conditions=(OBSERVED,)),
    "fashion": Contract("fashion", (1, 28, 28), "linear:1000", "v", conditions=(LABEL,)),
    "cifar": Contract("cifar", (3, 32, 32), "linear:1000", "eps"),
    "latents": Contract("latents", (4, 64, 64), "scaled_linear:1000", "eps", conditions=(TEXT,)),
}
CONDITION_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def contract_of(name: str, precision: str = "fp32") -> Contract:
    """The contract of a network; its floating conditions have the precision of the network."""
    contract = CONTRACTS[name]
    kinds = [replace(one, dtype=CONDITION_DTYPES[precision]) if one.shape else one for one in contract.conditions]
    return replace(contract, precision=precision, conditions=tuple(kinds))


def module_of(name: str, device: str = "cuda") -> nn.Module:
    """The float32 module on `device`, in evaluation mode; random weights but for `fashion`, which needs its file."""
    if name == "fashion":
        try:
            shipped = zoo.load("fashion").source
            assert isinstance(shipped, nn.Module)
            return shipped.to(device)
        except (EngineFileError, ModuleNotFoundError):  # no weights or no safetensors: as much work
            module = FashionUNet()
            generator = torch.Generator().manual_seed(0)
            for one in module.parameters():
                if not one.any():
                    one.data.normal_(0, 0.02, generator=generator)
            return module.to(device).eval()
    torch.manual_seed(0)
    with torch.device(device):
        if name == "policy":
            return PolicyUNet().eval().requires_grad_(False)
        return UNet(CIFAR if name == "cifar" else LATENTS).eval().requires_grad_(False)


def program_of(name: str, nfe: int, solver: str, *, grid: str = "uniform", **settings: Any) -> Program:
    """The program of `solver` for a network; settings as in `pfdiff.compile`."""
    contract = CONTRACTS[name]
    return compile(solver, contract.schedule, nfe, grid=grid, prediction=contract.prediction, **settings)


def engine_of(
    name: str,
    module: nn.Module | None = None,
    *,
    nfe: Iterable[int] = (8,),
    batch: tuple[int, ...] = (1,),
    precision: str = "fp32",
    solver: str = "pfdiff:k=2,l=1",
    device: str = "cuda",
    options: CudaOptions | None = None,
    **settings: Any,
) -> Engine:
    """An engine of `module` (default: a fresh one) for backend torch; settings as in `pfdiff.compile`.

    options: by default the module as it is, since compiling takes longer than what is measured or tested.
    """
    options = options or CudaOptions(compile=False)
    contract = contract_of(name, precision)
    programs = {count: program_of(name, count, solver, **settings) for count in nfe}
    artifact = Artifact(Path(name), contract, batch, precision, programs)
    module = module_of(name, device) if module is None else module
    return Engine.open(artifact, device=device, backend="torch", module=module, options=options)
