"""What makes an engine a policy: observations come in, actions go out, in their own units.

    conditions = encode(observations), or the observations themselves
    actions    = scale * sample + offset        sample, actions [horizon, size of an action]

Of the horizon's actions `first` to `first + count` are carried out, then the next chunk is sampled (receding horizon:
Chi et al., arXiv 2303.04137, section 2). The first `first` lie in the past, beside earlier observations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, final

from ..errors import InputError, shown
from ..json_fields import as_json, check_shape, check_text, is_integer, is_number, is_strings, read_fields
from .second import EncoderContract

OBSERVATION = "observation"  # the word of `Engine.sample`, and the one condition of a policy without an encoder


@dataclass(frozen=True)
class ObservationContract(EncoderContract):
    """Input and output of encoders/observation.onnx: encoded [batch, size] = encoder(packed [batch, length]), float32.

    `packed` holds the observations of one sample, flattened, one after the other; `encoded` its conditions likewise.
    """

    KIND = "observation encoder"
    input: str = "packed"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample's observations."""
        return (self.length,)


@dataclass(frozen=True)
class Observed:
    """One observation: its name, and its shape [steps, ...] for one sample; `steps` is the same for all."""

    name: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        check_text("observation: name", self.name)
        check_shape(f"observation '{self.name}': shape", self.shape)
        if not self.shape:
            raise InputError(f"observation '{self.name}': shape [], expected [steps, ...], such as [2, 7]")


@final
@dataclass(frozen=True)
class PolicyContract:
    """See above. `conditions`: what the network takes of the observations; scale, offset: one number for each action.

    Without an encoder the observations, joined along their last axis, are the one condition.
    """

    conditions: tuple[str, ...]
    observations: tuple[Observed, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    first: int
    count: int
    encoder: ObservationContract | None = None

    def __post_init__(self) -> None:
        if not (is_strings(self.conditions) and self.conditions and self.observations):
            raise InputError("policy: expected names of conditions, and at least one observation")
        names = [one.name for one in self.observations]
        if len(set(names)) < len(names):
            raise InputError(f"policy: observations {', '.join(names)}, expected each name once")
        steps = {one.shape[0] for one in self.observations}
        if len(steps) > 1:
            raise InputError(f"policy: observations of {sorted(steps)} steps, expected one number of steps for all")
        for field in ("scale", "offset"):
            values: Any = getattr(self, field)
            if not (isinstance(values, tuple) and values and all(map(is_number, values))):
                raise InputError(f"policy: {field} {shown(values)}, expected a number for each action")
        if len(self.scale) != len(self.offset) or 0 in self.scale:
            raise InputError("policy: expected as many offsets as scales, and no scale of 0")
        if self.encoder is not None and self.encoder.fixed_batch is not None:
            raise InputError("observation encoder: a fixed batch, expected one of any batch")
        for field, least in (("first", 0), ("count", 1)):
            value = getattr(self, field)
            if not (is_integer(value) and value >= least):
                raise InputError(f"policy: {field} {shown(value)}, expected an integer of at least {least}")

    @property
    def steps(self) -> int:
        """Ticks whose observations a chunk is sampled from."""
        return self.observations[0].shape[0]

    def check(self, shape: Sequence[int], conditions: Mapping[str, tuple[int, ...]]) -> None:
        """Compare with a network of samples `shape` and `conditions` by name. Raises InputError."""
        if len(shape) != 2 or shape[1] != len(self.scale) or self.first + self.count > shape[0]:
            raise InputError(
                f"policy: {len(self.scale)} scales and actions {self.first}..{self.first + self.count - 1} of samples "
                f"{list(shape)}, expected samples [horizon, {len(self.scale)}] that hold them"
            )
        missing = [name for name in self.conditions if name not in conditions]
        if missing:
            raise InputError(f"policy: the network has no condition '{missing[0]}'; it has {', '.join(conditions)}")
        sizes = sum(math.prod(conditions[name]) for name in self.conditions)
        if self.encoder is None:
            joined = (*self.observations[0].shape[:-1], sum(one.shape[-1] for one in self.observations))
            if len(self.conditions) != 1 or conditions[self.conditions[0]] != joined:
                raise InputError(
                    f"policy: observations {list(joined)} for the conditions {', '.join(self.conditions)} of "
                    f"{sizes} numbers; give an encoder that makes these"
                )
            return
        length = sum(math.prod(one.shape) for one in self.observations)
        if (self.encoder.length, self.encoder.size) != (length, sizes):
            raise InputError(
                f"policy: an encoder of {self.encoder.length} numbers into {self.encoder.size}, expected {length} "
                f"into {sizes}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` reads it back."""
        plain = {field.name: as_json(getattr(self, field.name)) for field in fields(self)}
        plain["observations"] = [{"name": one.name, "shape": list(one.shape)} for one in self.observations]
        plain["encoder"] = self.encoder and self.encoder.to_dict()
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> PolicyContract:
        """Read `to_dict` data. Raises InputError that names a missing, unknown or unfit field."""
        values = read_fields("policy", cls, plain)
        if not isinstance(values["observations"], tuple):
            raise InputError(f"policy: observations {shown(values['observations'])}, expected a list")
        values["observations"] = tuple(
            Observed(**read_fields("observation", Observed, one)) for one in values["observations"]
        )
        if values.get("encoder") is not None:
            values["encoder"] = ObservationContract.from_dict(values["encoder"])
        return cls(**values)
