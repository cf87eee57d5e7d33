"""A module around another source's module is a source again, with the same contract but for its conditions."""

from __future__ import annotations

import torch
from torch import nn

from ...engine.contract.condition import Condition
from ..described import Described
from .from_module import ModuleSource


def wrapped(
    source: ModuleSource, module: nn.Module, conditions: tuple[Condition, ...], *, time_dtype: str | None = None
) -> ModuleSource:
    """The source of `module`, forward(x, t, **conditions) -> out, which calls that of `source`.

    time_dtype: of t, None for the same. A variance is cut off inside.
    """
    contract = source.contract
    described = Described(
        module,
        contract.name,
        contract.shape,
        contract.schedule,
        contract.prediction,
        conditions={one.name: one for one in conditions},
        input="x",
        time="t",
        time_scale=contract.time_scale,
        time_dtype=time_dtype or contract.time_dtype,
        sigma_data=contract.sigma_data,
        data_range=contract.data_range,
        example={} if contract.time_rank else {"t": torch.zeros(())},
        weights=source.weights,
    )
    made = ModuleSource(module, source.content(), described)
    made.left_out = source.left_out
    return made
