"""The inputs of a network and its prediction: the contract between the exporter, the engine and the backends.

    out [batch, *shape] = network(x [batch, *shape], t [batch] or scalar, conditions [batch, *condition.shape]...)

`x` and `out` have the dtype of `precision`; `t` is float32 or int64; a condition is of its own dtype. The contract
is plain data (NumPy only) and part of `engine.json`; `from_dict` refuses a field that does not fit, by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..compiler.basis import PREDICTIONS
from ..errors import InputError, did_you_mean, shown
from ..json_fields import as_json, check_choice, check_name, check_shape, check_text, is_integer, is_number, read_fields
from .condition import Condition
from .policy import ObservationContract
from .second import EncoderContract, SecondContract, check_fixed_batch

PRECISIONS = ("fp32", "fp16", "bf16")
QUANTISED = ("int8", "fp8")  # of an engine: layers inside in eight bits, x and out in one of the above
TIME_DTYPES = ("float32", "int64")
MOST_CONDITIONS = 256


@dataclass(frozen=True)
class Contract:
    """The inputs and the prediction of `network.onnx`; shapes are per sample, without the batch.

    `time_scale`: the network is fed `network_times * time_scale`, shaped [batch] (`time_rank` 1) or scalar (0).
    `fixed_batch`: the only batch size the network accepts, None for any.
    `learned_sigma`: the source has twice the channels and the exported graph keeps the first half, the mean.
    """

    name: str
    shape: tuple[int, ...]
    schedule: str
    prediction: str
    input: str = "x"
    time: str = "t"
    output: str = "out"
    time_dtype: str = "float32"
    time_scale: float = 1.0
    time_rank: int = 1
    conditions: tuple[Condition, ...] = ()
    sigma_data: float = 0.5
    data_range: tuple[float, float] = (-1.0, 1.0)
    fixed_batch: int | None = None
    precision: str = "fp32"
    learned_sigma: bool = False

    def __post_init__(self) -> None:
        for field in ("name", "schedule"):
            check_text(f"contract: {field}", getattr(self, field))
        check_shape("contract: shape", self.shape)
        if not self.shape:
            raise InputError("contract: shape [] of a sample is empty; expected for instance [3, 64, 64]")
        check_choice("contract: prediction", self.prediction, PREDICTIONS)
        check_choice("contract: precision", self.precision, PRECISIONS)
        check_choice("contract: time_dtype", self.time_dtype, TIME_DTYPES)
        if not (is_integer(self.time_rank) and self.time_rank in (0, 1)):
            raise InputError(
                f"contract: time_rank {shown(self.time_rank)}, expected 0 (one scalar) or 1 (one for each sample)"
            )
        for field in ("time_scale", "sigma_data"):
            value = getattr(self, field)
            if not (is_number(value) and value > 0):
                raise InputError(f"contract: {field} {shown(value)}, expected a number above 0")
        span: Any = self.data_range
        if not (isinstance(span, tuple) and len(span) == 2 and all(map(is_number, span)) and span[0] < span[1]):
            raise InputError(f"contract: data_range {shown(span)}, expected two numbers, the lower first")
        check_fixed_batch("contract", self.fixed_batch)
        if not isinstance(self.learned_sigma, bool):
            raise InputError(f"contract: learned_sigma {shown(self.learned_sigma)}, expected true or false")
        conditions: Any = self.conditions
        if not (isinstance(conditions, tuple) and all(isinstance(one, Condition) for one in conditions)):
            raise InputError(f"contract: conditions {shown(conditions)}, expected a tuple of Condition")
        self._check_names()

    def _check_names(self) -> None:
        for field in ("input", "time", "output"):
            check_name(f"contract: {field}", getattr(self, field))
        if len(self.conditions) > MOST_CONDITIONS:
            raise InputError(f"contract: {len(self.conditions)} conditions, expected at most {MOST_CONDITIONS}")
        names = [*self.inputs, self.output]
        names += [condition.alias for condition in self.conditions if condition.alias]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"contract: the name '{name}' is used twice among {', '.join(names)}; rename one")

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of x, the time and every condition, in this order."""
        return (self.input, self.time, *(condition.name for condition in self.conditions))

    @property
    def input_dtype(self) -> str:
        """Of x: a precision, or int64."""
        return self.precision

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one sample's prediction."""
        return self.shape

    @property
    def stand_ins(self) -> dict[str, NDArray[Any]]:
        """By name, for each condition without a default: a placeholder value `shape`, for test runs: `low`, or zero."""
        return {one.name: np.full(one.shape, one.low or 0) for one in self.conditions if one.default is None}

    @cached_property
    def _condition_names(self) -> dict[str, str]:
        """A condition's own name by each name that callers may use."""
        return {name: one.name for one in self.conditions for name in (one.alias, one.name) if name}

    def by_name(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given` by the conditions' own names in place of aliases. Raises InputError: unknown, or given twice."""
        names = self._condition_names
        found: dict[str, Any] = {}
        for name, value in given.items():
            if name not in names:
                takes = f"takes {', '.join(one.name for one in self.conditions)}" if names else "takes none"
                raise InputError(f"unknown condition '{name}'; this network {takes}{did_you_mean(name, names)}")
            if names[name] in found:
                raise InputError(f"condition '{names[name]}' is given twice, also as '{name}'; give it once")
            found[names[name]] = value
        return found

    def called(self, given: Mapping[str, Any]) -> dict[str, str]:
        """The name that a caller used, by the condition's own name; of known names."""
        return {self._condition_names[name]: name for name in given}

    def values(self, given: Mapping[str, Any], batch: int) -> list[NDArray[Any]]:
        """The arrays [batch, *shape] of all conditions, in their order; messages use the names of `given`.

        Raises InputError on what `by_name` and `Condition.values` refuse.
        """
        found, called = self.by_name(given), self.called(given)
        return [one.values(found.get(one.name), batch, called.get(one.name)) for one in self.conditions]

    def feed_times(self, network_times: ArrayLike) -> NDArray[Any]:
        """The values [N] fed as time, of `time_dtype`: `network_times` (float64 [N]) times `time_scale`.

        Raises InputError when the network takes integers and a time is a fraction.
        """
        times = np.asarray(network_times, dtype=np.float64) * self.time_scale
        if self.time_dtype == "float32":
            return times.astype(np.float32)
        whole = np.rint(times)
        wrong = np.flatnonzero(np.abs(times - whole) > 1e-6)
        if wrong.size:
            raise InputError(
                f"time {times[wrong[0]]:g} is no integer, but this network takes int64 times; "
                "use a discrete schedule and a grid of integer times"
            )
        return whole.astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, every field present but an empty alias; `from_dict` reads it back."""
        plain = {field.name: as_json(getattr(self, field.name)) for field in fields(self)}
        # Digests hash this text: an engine from before there were aliases stays up to date.
        plain["conditions"] = [
            {
                field.name: as_json(getattr(one, field.name))
                for field in fields(one)
                if field.name != "alias" or one.alias
            }
            for one in self.conditions
        ]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Contract:
        """Read `to_dict` data. Raises InputError that names a missing, unknown or unfit field."""
        values = read_fields("contract", cls, plain)
        conditions: Any = values.get("conditions", ())
        if not isinstance(conditions, tuple):
            raise InputError(f"contract: conditions {shown(conditions)}, expected a list")
        values["conditions"] = tuple(Condition(**read_fields("condition", Condition, one)) for one in conditions)
        return cls(**values)


@dataclass(frozen=True)
class DecoderContract(SecondContract):
    """Input and output of a latent model's `decoder.onnx`: image [batch, *image] = decoder(latents [batch, *shape]).

    image: [C, H, W], or of a video [C, frames, H, W].
    The images lie in the `data_range` of the network's contract. `scaling` and `shift` are one number each, or one for
    each channel: decode(latents / scaling + shift). The graph contains them; here they only inform.
    """

    KIND = "decoder"
    name: str
    shape: tuple[int, ...]
    image: tuple[int, ...]
    input: str = "latents"
    output: str = "image"
    scaling: float | tuple[float, ...] = 1.0
    shift: float | tuple[float, ...] = 0.0
    fixed_batch: int | None = None
    precision: str = "fp32"

    def __post_init__(self) -> None:
        self._check_names()
        for field in ("shape", "image"):
            check_shape(f"decoder: {field}", getattr(self, field))
        if len(self.image) not in (3, 4):
            raise InputError(
                f"decoder: image {shown(list(self.image))}, expected [C, H, W], such as [3, 512, 512], or "
                "[C, frames, H, W]"
            )
        check_text("decoder: name", self.name)
        check_choice("decoder: precision", self.precision, PRECISIONS)
        check_fixed_batch("decoder", self.fixed_batch)
        channels = self.shape[0] if self.shape else 1
        for field in ("scaling", "shift"):
            values: Any = getattr(self, field)
            each = values if isinstance(values, tuple) else (values,) * channels
            if len(each) != channels or not all(map(is_number, each)) or (field == "scaling" and 0 in each):
                zero = " other than 0" if field == "scaling" else ""
                raise InputError(
                    f"decoder: {field} {shown(values)}, expected a number{zero}, or {channels}, one a channel"
                )

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one image."""
        return self.image


MOST_TOKENS = 1 << 16  # of a prompt


@dataclass(frozen=True)
class TextEncoderContract(EncoderContract):
    """Input and output of a text encoder: encoded [batch, size] = encoder(tokens int64 [batch, 2, length]).

    tokens[:, 0] are the ids of a prompt, tokens[:, 1] its attention mask. `encoded` holds all conditions that a prompt
    stands for, flattened, one after the other, zero where another encoder of the engine has to say something: the
    encoders of an engine are added up.
    """

    KIND = "text encoder"
    DTYPE = "int64"
    LONGEST = MOST_TOKENS
    TAKES = PRECISIONS
    input: str = "tokens"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one prompt's tokens."""
        return (2, self.length)


AnyContract = Contract | DecoderContract | TextEncoderContract | ObservationContract  # of one ONNX file of an engine
