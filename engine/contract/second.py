"""What the contracts of an engine's further networks share: a decoder, encoders of text and of observations.

out [batch, *output_shape] = network(input [batch, *shape])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from ..errors import InputError, shown
from ..json_fields import MOST_ELEMENTS, as_json, check_choice, check_name, check_text, is_integer, read_fields

LARGEST_BATCH = 1 << 20


def check_fixed_batch(what: str, value: Any) -> None:
    if value is not None and not (is_integer(value) and 1 <= value <= LARGEST_BATCH):
        raise InputError(f"{what}: fixed_batch {shown(value)}, expected an integer in 1..{LARGEST_BATCH}, or None")


class SecondContract:
    """Of one ONNX file with one input and one output; the dataclasses below it say which shapes these have."""

    KIND: ClassVar[str]  # as messages call it
    DTYPE: ClassVar[str | None] = None  # of the input, where it is not the precision
    input: str
    output: str
    precision: str

    def _check_names(self) -> None:
        for field in ("input", "output"):
            check_name(f"{self.KIND}: {field}", getattr(self, field))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The name of the input, in a tuple like a network's inputs."""
        return (self.input,)

    @property
    def input_dtype(self) -> str:
        """Of the input: a precision, or int64."""
        return self.DTYPE or self.precision

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, every field present; `from_dict` reads it back."""
        plain: Any = self
        return {field.name: as_json(getattr(self, field.name)) for field in fields(plain)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Read `to_dict` data. Raises InputError that names a missing, unknown or unfit field."""
        return cls(**read_fields(cls.KIND, cls, plain))


@dataclass(frozen=True)
class EncoderContract(SecondContract):
    """Of an encoder: `length` numbers of a sample become `size`, all conditions that it makes, one after the other."""

    LONGEST: ClassVar[int] = MOST_ELEMENTS
    TAKES: ClassVar[tuple[str, ...]] = ("fp32",)  # precisions
    name: str
    length: int
    size: int
    input: str
    output: str = "encoded"
    fixed_batch: int | None = None
    precision: str = "fp32"

    def __post_init__(self) -> None:
        check_text(f"{self.KIND}: name", self.name)
        self._check_names()
        for field, most in (("length", self.LONGEST), ("size", MOST_ELEMENTS)):
            value = getattr(self, field)
            if not (is_integer(value) and 1 <= value <= most):
                raise InputError(f"{self.KIND}: {field} {shown(value)}, expected an integer in 1..{most}")
        check_choice(f"{self.KIND}: precision", self.precision, self.TAKES)
        check_fixed_batch(self.KIND, self.fixed_batch)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one sample's conditions."""
        return (self.size,)
