"""A policy's options fitted to its network: the contract, and the observation encoder as encoders/observation.onnx."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from ...engine.artifact import OBSERVATION_ENCODER
from ...engine.contract.contract import Contract
from ...engine.contract.policy import ObservationContract, Observed, PolicyContract
from ...engine.errors import InputError, first_line
from ...engine.progress import Lines
from ..check import TrialInputs, check_export
from ..sources.module_digest import content_digest
from ..to_onnx import export_module, prepared
from .options import Policy

FORMAT = "pfdiff policy 1"  # part of the digest: another exporter, another engine


@final
class Packed(nn.Module):
    """forward(packed [B, length]) -> encoded [B, size], by an encoder of separate observations and conditions."""

    def __init__(self, encoder: nn.Module, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.encoder = encoder
        self.shapes = tuple(shapes)

    def forward(self, packed: Tensor) -> Tensor:
        parts = packed.split([math.prod(one) for one in self.shapes], dim=1)
        made = self.encoder(*(part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)))
        return torch.cat([one.flatten(1) for one in (made if isinstance(made, tuple) else (made,))], dim=1)


@final
class OpenedPolicy:
    """Options that fit. Raises InputError, one line, where they do not."""

    def __init__(self, given: Policy, network: Contract) -> None:
        observed = tuple(Observed(name, tuple(shape)) for name, shape in given.observations.items())
        shapes = {one.name: one.shape for one in network.conditions}
        names = tuple(given.conditions) or tuple(shapes)
        actions, horizon = network.shape[-1], network.shape[0]
        self._given = given
        self._name = network.name
        self._encoder: Packed | None = None
        encoder = None
        if given.encoder is not None:
            self._encoder = Packed(given.encoder.eval(), [one.shape for one in observed])
            sizes = sum(math.prod(shapes.get(name, (0,))) for name in names)
            encoder = ObservationContract(network.name, sum(math.prod(one.shape) for one in observed), sizes)
            self._try(encoder)
        self.contract = PolicyContract(
            names,
            observed,
            _each(given.scale, actions),
            _each(given.offset, actions),
            given.first,
            max(1, horizon // 2) if given.count is None else given.count,
            encoder,
        )
        self.contract.check(network.shape, shapes)

    def _try(self, contract: ObservationContract) -> None:
        """Raises InputError for an encoder that fails, or makes what the network does not take."""
        assert self._encoder is not None
        try:
            with torch.no_grad():
                made = self._encoder(torch.zeros(2, contract.length))
        except Exception as error:  # whatever a user's module raises
            raise InputError(f"the observation encoder fails: {first_line(error)}") from error
        if tuple(made.shape) != (2, contract.size):
            raise InputError(
                f"the observation encoder makes {made.shape[-1]} numbers, the network's conditions take {contract.size}"
            )

    @cached_property
    def digest(self) -> str:
        """sha256 hex of the contract and the encoder's weights and code; nothing is exported."""
        found = hashlib.sha256(FORMAT.encode())
        found.update(json.dumps(self.contract.to_dict(), sort_keys=True).encode())
        if self._encoder is not None:
            found.update(content_digest(self._encoder.encoder, self._given.content))
        return found.hexdigest()

    def write(self, folder: Path, progress: Lines) -> PolicyContract:
        """Write encoders/observation.onnx, compared with the module, where there is one. Raises InputError."""
        contract = self.contract.encoder
        if contract is None or self._encoder is None:
            return self.contract
        progress(f"exporting the observation encoder of {self._name} to ONNX")
        path = folder / OBSERVATION_ENCODER
        path.parent.mkdir(exist_ok=True)
        with prepared(self._encoder, torch.float32) as encode:
            export_module(encode, contract, path)
        draw = np.random.default_rng(0)
        trials = [
            TrialInputs(draw.random((batch, contract.length), dtype=np.float32), np.empty(0), ()) for batch in (1, 2)
        ]

        def run(case: TrialInputs) -> Any:
            assert self._encoder is not None
            with prepared(self._encoder, torch.float32) as encode, torch.no_grad():
                return encode(torch.from_numpy(case.x)).numpy()

        check_export(path, contract, run, None, trials)
        return replace(self.contract)


def _each(given: float | Sequence[float], actions: int) -> tuple[float, ...]:
    values = np.asarray(given, np.float64)
    if values.shape not in ((), (actions,)):
        raise InputError(f"policy: {values.size} scales or offsets, expected one, or {actions}, one for each action")
    return tuple(np.broadcast_to(values, (actions,)).tolist())
