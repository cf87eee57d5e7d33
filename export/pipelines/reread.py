"""Models that are read from files: freed while another one is exported, and read again when they are wanted.

They stay the same objects: what wraps them, and what an engine is given to run, needs no second look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from ...engine.errors import InputError
from .weights import return_memory

READ = (".safetensors", ".json")


@final
@dataclass(frozen=True)
class Reading:
    """How a model is read, each time in new memory. places: the folders and files that it comes from."""

    read: Callable[[], nn.Module]
    places: tuple[Path, ...] = ()

    @property
    def stamp(self) -> dict[Path, tuple[int, int]]:
        """Size and time of each file."""
        files = [one for place in self.places for one in (sorted(place.glob("*")) if place.is_dir() else (place,))]
        found = {one: one.stat() for one in files if one.suffix in READ and one.is_file()}
        return {one: (stat.st_size, stat.st_mtime_ns) for one, stat in found.items()}

    def check(self, stamp: Mapping[Path, tuple[int, int]]) -> None:
        """Raises InputError where the files are not those of `stamp`."""
        if self.stamp != stamp:
            raise InputError(f"'{self.places[0]}' has changed since it was read; build again")


@final
class Reread:
    """The weights of some models that `readings` made. `freed`: whether they have no elements now."""

    def __init__(self, models: Iterable[tuple[nn.Module, Reading]]) -> None:
        self._models = [(_tensors(model), reading, reading.stamp) for model, reading in models]
        self._bytes = sum(tensor.data.nbytes for held, _, _ in self._models for tensor in held.values())
        self.freed = False

    def free(self) -> None:
        """Every weight and buffer gives its memory back; whoever holds it has one without elements."""
        for held, _, _ in self._models:
            for tensor in held.values():
                tensor.data = tensor.data.new_empty(0)
        self.freed = True
        return_memory(self._bytes)

    def restore(self) -> None:
        """Reads what was freed. Raises InputError for files that have changed since."""
        if not self.freed:
            return
        for held, reading, stamp in self._models:
            reading.check(stamp)
            for name, tensor in _tensors(reading.read()).items():
                held[name].data = tensor.data
        self.freed = False


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def without_numbers(held: Iterable[tuple[str, Tensor]]) -> dict[str, Any]:
    """Tensors of these names, shapes and dtypes (floating ones float32) that hold no numbers."""

    def empty(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device="meta", dtype=torch.float32 if tensor.is_floating_point() else None)

    return {name: empty(one) for name, one in held}
