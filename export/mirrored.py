"""A model whose parts can be exchanged for an export: new module objects around the same weights and tables."""

from __future__ import annotations

import copy

from torch import nn


def mirrored(module: nn.Module) -> nn.Module:
    """The same module in new objects; nothing of the given one changes when parts of it are exchanged."""
    made = copy.copy(module)
    parts = {name: None if one is None else mirrored(one) for name, one in module._modules.items()}
    object.__setattr__(made, "_modules", parts)
    return made
