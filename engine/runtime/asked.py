"""What a call of `Engine.sample` asks for beside seeds and conditions: prompts, a picture to start from, a mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, final

from ..contract.contract import Contract
from ..errors import InputError
from .prompts import Prompt

STRENGTH = 0.8  # as diffusers' pipelines have it


@final
@dataclass(frozen=True, eq=False)
class Asked:
    """Words of `Engine.sample`, as they were given."""

    prompt: Prompt | None = None
    negative_prompt: Prompt | None = None
    image: Any = None
    strength: float | None = None
    strength_counts: str = "part"
    mask: Any = None

    def without(self, contract: Contract, conditions: Mapping[str, Any]) -> tuple[Asked, Mapping[str, Any]]:
        """Itself without what the network has conditions of the same name for, and the conditions with these.

        Raises InputError for a strength or a mask without an image.
        """
        if self is NOTHING or all(getattr(self, name) is default for name, default in DEFAULTS):
            return self, conditions
        rest = self
        names = {name for one in contract.conditions for name in (one.name, one.alias)}
        for field in fields(Asked):
            given = getattr(self, field.name)
            if field.name in names and given is not field.default:
                conditions = {**conditions, field.name: given}
                rest = replace(rest, **{field.name: field.default})
        if rest.image is None and (rest.strength is not None or rest.strength_counts != "part"):
            raise InputError("strength without a picture to start from; give image= (--image) too")
        if rest.image is None and rest.mask is not None:
            raise InputError("mask without a picture to keep a part of; give image= (--image) too")
        return rest, conditions

    @property
    def way(self) -> float:
        """The strength, or its default; with a mask all of what it leaves open is drawn anew."""
        return self.strength if self.strength is not None else STRENGTH if self.mask is None else 1.0


NOTHING = Asked()
DEFAULTS = tuple((field.name, field.default) for field in fields(Asked))
