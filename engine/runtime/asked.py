"""What a call of `Engine.sample` asks for beside seeds and conditions: prompts, and a picture to start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, final

from ..contract import Contract
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

    def without(self, contract: Contract, conditions: Mapping[str, Any]) -> tuple[Asked, Mapping[str, Any]]:
        """Itself without what the network has conditions of the same name for, and the conditions with these.

        Raises InputError for a strength without an image.
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
            raise InputError("strength without a picture to start from; give image= too")
        return rest, conditions

    @property
    def way(self) -> float:
        """The strength, or its default."""
        return STRENGTH if self.strength is None else self.strength


NOTHING = Asked()
DEFAULTS = tuple((field.name, field.default) for field in fields(Asked))
