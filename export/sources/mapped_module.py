"""A module that is fed a map of the schedule's time: the map becomes part of what is exported."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from ...engine.compiler.schedule import Discrete, parse_schedule
from ..time_map import TimeMap, formula
from .from_module import ModuleSource
from .module_call import Normalised
from .wrapped import wrapped


def with_time_map(source: ModuleSource, time_map: TimeMap, *, negated: bool) -> ModuleSource:
    """The source that takes the schedule's time; negated: what it predicts has the other sign."""
    module = TimeMappedModule(source, time_map, negated=negated)
    return wrapped(source, module, source.contract.conditions, time_dtype="float32")


@final
class TimeMappedModule(nn.Module):
    """forward(x [B, *shape], t [B] or [] float32, conditions...) -> prediction, with the network fed the map of t."""

    table: Tensor

    def __init__(self, source: ModuleSource, time_map: TimeMap, *, negated: bool) -> None:
        super().__init__()
        contract = source.contract
        schedule = parse_schedule(contract.schedule)
        time_map.values([schedule.first, schedule.last], schedule)  # finite
        self.network = Normalised(source.module, source.call)
        self.names = tuple(one.name for one in contract.conditions)
        self.whole = contract.time_dtype == "int64"
        self.sign = -1.0 if negated else 1.0
        self.described = f"{time_map} on {contract.schedule}"  # part of the digest
        # Discrete schedules have a table, computed in float64.
        self.looks_up = isinstance(schedule, Discrete) and time_map.quantity != "t"
        values = time_map.values(np.arange(schedule.last + 1), schedule) if self.looks_up else np.zeros(0)
        self.register_buffer("table", torch.from_numpy(values.astype(np.float32)), persistent=False)
        self.formula = formula(time_map, schedule)

    def forward(self, x: Tensor, t: Tensor, /, **given: Tensor) -> Tensor:
        if self.looks_up:
            fed = self.table[t.round().long().clamp(0, len(self.table) - 1)].float()
        else:
            fed = self.formula(t.float())
        fed = fed.round().long() if self.whole else fed
        return self.network(x, fed, *(given[name] for name in self.names)) * self.sign
