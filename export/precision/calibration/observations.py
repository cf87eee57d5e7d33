"""Observations that a policy is calibrated with. No file of a policy says what its cameras see, so users give them.

A policy with an encoder has conditions that its encoder makes; without one the observations are the one condition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from ....engine.artifact import OBSERVATION_ENCODER
from ....engine.contract.contract import Contract
from ....engine.contract.policy import PolicyContract
from ...check import OnnxRun
from .makers import Part, split

Array = NDArray[Any]
NAME = "the observation encoder"


@final
@dataclass(frozen=True, eq=False)
class Observations:
    """values: by name float32 [m, *shape], in the contract's order. paths: in place of the file in `folder`."""

    folder: Path
    policy: PolicyContract
    values: Mapping[str, Array]
    paths: Mapping[str, Path] = field(default_factory=dict)

    @property
    def conditions(self) -> tuple[str, ...]:
        return self.policy.conditions

    def parts(self) -> list[Part]:
        encoder, place = self.policy.encoder, self.folder / OBSERVATION_ENCODER
        if encoder is None:
            return []
        packed = np.concatenate([one.reshape(len(one), -1) for one in self.values.values()], axis=1)
        return [Part(NAME, place, self.paths.get(NAME, place), encoder, packed)]

    def tables(self, contract: Contract) -> dict[str, Array]:
        for part in self.parts():
            run = OnnxRun(part.exact, part.contract.inputs, part.contract.output)
            rows = np.concatenate([run((part.inputs[n : n + 1],)) for n in range(len(part.inputs))])
            return split(rows, self.conditions, contract)
        return {self.conditions[0]: np.concatenate(list(self.values.values()), axis=-1)}

    def of_files(self, paths: Mapping[str, Path]) -> Observations:
        return replace(self, paths={**self.paths, **paths})
