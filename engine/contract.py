"""What a network takes and what it predicts: the contract between the exporter, the engine and the backends.

    out [batch, *shape] = network(x [batch, *shape], t [batch] or scalar, conditions [batch, *condition.shape]...)

`x` and `out` have the dtype of `precision`; `t` is float32 or int64; a condition is of its own dtype. The contract
is plain data (NumPy only) and stands in `engine.json`; `from_dict` refuses a field that does not fit by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError
from .json_fields import as_json, check_choice, check_name, check_shape, is_integer, is_number, is_strings, read_fields

PREDICTIONS = ("eps", "x0", "v", "flow", "edm")
PRECISIONS = ("fp32", "fp16", "bf16")
TIME_DTYPES = ("float32", "int64")
# The dtypes of a condition, and the least and the largest number that each holds.
DTYPE_RANGES: dict[str, tuple[float, float]] = {
    "float32": (-(2 - 2**-23) * 2.0**127, (2 - 2**-23) * 2.0**127),
    "float16": (-65504.0, 65504.0),
    "bfloat16": (-(2 - 2**-7) * 2.0**127, (2 - 2**-7) * 2.0**127),
    "int64": (-(2**63), 2**63 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "bool": (0, 1),
}
CONDITION_DTYPES = tuple(DTYPE_RANGES)
RESERVED_NAMES = ("seeds", "noise", "nfe", "batch")  # words of `engine.sample` and of the ONNX graph


@dataclass(frozen=True)
class Condition:
    """One further input of a network, fed as [batch, *shape].

    `default` is taken when the caller gives nothing, one number for every element or, for shape [n], n numbers; without
    it the condition must be given. `low` and `high` bound integers, both included; `labels` names the integers 0, 1,
    2, ...; `alias` is a second name that callers may use.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    default: int | float | tuple[int | float, ...] | None = None
    low: int | None = None
    high: int | None = None
    labels: tuple[str, ...] = ()
    alias: str = ""

    def __post_init__(self) -> None:
        check_name("condition", self.name)
        where = f"condition '{self.name}'"
        if self.name in RESERVED_NAMES:
            raise InputError(f"{where}: the name is a word of engine.sample; rename the network's input")
        check_choice(f"{where}: dtype", self.dtype, CONDITION_DTYPES)
        check_shape(f"{where}: shape", self.shape)
        for field in ("low", "high"):
            bound = getattr(self, field)
            if bound is not None and not (is_integer(bound) and self.dtype.startswith("int")):
                raise InputError(
                    f"{where}: {field} {bound!r} with dtype {self.dtype}; bounds are integers of an int dtype"
                )
        if self.low is not None and self.high is not None and self.low > self.high:
            raise InputError(f"{where}: low {self.low} is above high {self.high}; swap them")
        if not is_strings(self.labels):
            raise InputError(f"{where}: labels {self.labels!r}, expected a tuple of strings")
        if self.alias:
            check_name(f"{where}: alias", self.alias)
        if self.default is not None:
            numbers = self.default if isinstance(self.default, tuple) else (self.default,)
            if not all(is_number(one) or isinstance(one, bool) for one in numbers):
                raise InputError(f"{where}: default {self.default!r}, expected one finite number or None")
            if isinstance(self.default, tuple) and self.shape != (len(numbers),):
                raise InputError(
                    f"{where}: default of {len(numbers)} numbers, expected one, or shape {list(self.shape)}"
                )
            if not self.dtype.startswith(("float", "bfloat")) and any(one != int(one) for one in numbers):
                raise InputError(f"{where}: default {self.default!r} is no integer, but its dtype is {self.dtype}")
            self._check_range(np.asarray(numbers))

    @cached_property
    def _range(self) -> tuple[float, float]:
        """Of the dtype, and within `low` and `high`. Python's numbers, which compare exactly."""
        low, high = DTYPE_RANGES[self.dtype]
        return max(low, low if self.low is None else self.low), min(high, high if self.high is None else self.high)

    @cached_property
    def _fed(self) -> np.dtype[Any]:
        """NumPy has no bfloat16, and the backend casts."""
        return np.dtype("float32" if self.dtype in ("float16", "bfloat16") else self.dtype)

    def _check_range(self, values: NDArray[Any]) -> None:
        if not values.size:
            return
        low, high = self._range
        least = values.item() if values.size == 1 else values.min().item()
        most = least if values.size == 1 else values.max().item()
        if low <= least and most <= high:  # false for NaN
            return
        if not (math.isfinite(least) and math.isfinite(most)):
            raise InputError(f"condition '{self.name}': got NaN or infinity, expected finite numbers")
        got = f"{least}" if least == most else f"{least}..{most}"
        raise InputError(f"condition '{self.name}': got {got}, expected values in {low}..{high} ({self.dtype})")

    def values(self, given: ArrayLike | str | Sequence[str] | None, batch: int) -> NDArray[Any]:
        """The array [batch, *shape] to feed for what the caller gave.

        `given` is one value for all samples (shape `shape`), one for each ([batch, *shape]), a label's name or a list
        of names, or None for the default. float16 and bfloat16 come back as float32: the backend casts.
        Raises InputError on a missing value, a wrong shape, an unknown label, a fraction for an integer, NaN,
        and what the dtype does not hold.
        """
        fed = np.empty((batch, *self.shape), self._fed)
        if given is None:
            if self.default is None:
                what = f"{self.dtype} {list(self.shape)}" if self.shape else f"a {self.dtype} value"
                raise InputError(f"condition '{self.name}' is missing; give {self.alias or self.name}= {what}")
            fed[...] = self.default
            return fed
        values = np.asarray(self._from_labels(given))
        if values.dtype.kind not in "biuf":
            raise InputError(f"condition '{self.name}': got {values.dtype}, expected numbers of dtype {self.dtype}")
        if values.shape not in (self.shape, (1, *self.shape), (batch, *self.shape)):
            raise InputError(
                f"condition '{self.name}': got shape {list(values.shape)}, expected {list(self.shape)} for all samples "
                f"or {[batch, *self.shape]}, one for each"
            )
        self._check_range(values)
        if self._fed.kind != "f" and values.dtype.kind == "f" and (values != np.trunc(values)).any():
            raise InputError(f"condition '{self.name}': got fractions, expected integers ({self.dtype})")
        fed[...] = values
        return fed

    def _from_labels(self, given: Any) -> Any:
        names = [given] if isinstance(given, str) else given
        if not (isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names)):
            return given
        for name in names:
            if name not in self.labels:
                known = ", ".join(self.labels) or "none, this condition takes numbers"
                raise InputError(f"condition '{self.name}': unknown label '{name}'; known labels: {known}")
        numbers = [self.labels.index(name) for name in names]
        return numbers[0] if isinstance(given, str) else numbers


@dataclass(frozen=True)
class Contract:
    """What `network.onnx` takes and predicts; shapes are per sample, without the batch.

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
            value = getattr(self, field)
            if not (isinstance(value, str) and value.strip()):
                raise InputError(f"contract: {field} {value!r}, expected a non-empty string")
        check_shape("contract: shape", self.shape)
        if not self.shape:
            raise InputError("contract: shape [] of a sample is empty; expected for instance [3, 64, 64]")
        check_choice("contract: prediction", self.prediction, PREDICTIONS)
        check_choice("contract: precision", self.precision, PRECISIONS)
        check_choice("contract: time_dtype", self.time_dtype, TIME_DTYPES)
        if not (is_integer(self.time_rank) and self.time_rank in (0, 1)):
            raise InputError(
                f"contract: time_rank {self.time_rank!r}, expected 0 (one scalar) or 1 (one for each sample)"
            )
        for field in ("time_scale", "sigma_data"):
            value = getattr(self, field)
            if not (is_number(value) and value > 0):
                raise InputError(f"contract: {field} {value!r}, expected a number above 0")
        span: Any = self.data_range
        if not (isinstance(span, tuple) and len(span) == 2 and all(map(is_number, span)) and span[0] < span[1]):
            raise InputError(f"contract: data_range {span!r}, expected two numbers, the lower first")
        if self.fixed_batch is not None and not (is_integer(self.fixed_batch) and self.fixed_batch >= 1):
            raise InputError(f"contract: fixed_batch {self.fixed_batch!r}, expected an integer of at least 1 or None")
        if not isinstance(self.learned_sigma, bool):
            raise InputError(f"contract: learned_sigma {self.learned_sigma!r}, expected true or false")
        conditions: Any = self.conditions
        if not (isinstance(conditions, tuple) and all(isinstance(one, Condition) for one in conditions)):
            raise InputError(f"contract: conditions {conditions!r}, expected a tuple of Condition")
        self._check_names()

    def _check_names(self) -> None:
        for field in ("input", "time", "output"):
            check_name(f"contract: {field}", getattr(self, field))
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
    def output_shape(self) -> tuple[int, ...]:
        """Of one sample's prediction."""
        return self.shape

    @property
    def stand_ins(self) -> dict[str, NDArray[Any]]:
        """By name, for each condition without a default, one value `shape` that will do for a trial: `low`, or zero."""
        return {one.name: np.full(one.shape, one.low or 0) for one in self.conditions if one.default is None}

    @cached_property
    def _condition_names(self) -> dict[str, str]:
        """A condition's own name by each that it may be given by."""
        return {name: one.name for one in self.conditions for name in (one.alias, one.name) if name}

    def by_name(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given` by the conditions' own names in place of aliases. Raises InputError: unknown, or given twice."""
        names = self._condition_names
        found: dict[str, Any] = {}
        for name, value in given.items():
            if name not in names:
                takes = f"takes {', '.join(one.name for one in self.conditions)}" if names else "takes none"
                raise InputError(f"unknown condition '{name}'; this network {takes}")
            if names[name] in found:
                raise InputError(f"condition '{names[name]}' is given twice, also as '{name}'; give it once")
            found[names[name]] = value
        return found

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
        # Digests hold this text: what was built before there were aliases stays up to date.
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
            raise InputError(f"contract: conditions {conditions!r}, expected a list")
        values["conditions"] = tuple(Condition(**read_fields("condition", Condition, one)) for one in conditions)
        return cls(**values)


def parse_condition(text: str) -> Condition:
    """The condition that `name:dtype[:shape][:low..high][=default]` means, as written on a command line.

    For instance `label:int64:0..9=9`, `context:float32:77x768`. Raises InputError.
    """
    described, equals, last = text.partition("=")
    name, *rest = described.split(":")
    usage = (
        f"condition '{text}': expected name:dtype[:shape][:low..high][=default], such as label:int64:0..9=9 or "
        "text:float32:77x768"
    )
    if not 1 <= len(rest) <= 3:
        raise InputError(usage)
    shape: tuple[int, ...] = ()
    low = high = default = None
    try:
        if equals:
            default = int(last) if re.fullmatch(r"[-+]?\d+", last) else float(last)
        for part in rest[1:]:
            if ".." in part:
                low, high = (int(bound) for bound in part.split(".."))
            else:
                shape = tuple(int(size) for size in part.split("x"))
    except ValueError:
        raise InputError(usage) from None
    return Condition(name, rest[0], shape, default, low=low, high=high)


@dataclass(frozen=True)
class DecoderContract:
    """What `decoder.onnx` of a latent model takes and gives: image [batch, *image] = decoder(latents [batch, *shape]).

    The images lie in the `data_range` of the network's contract. `scaling` and `shift`, one number or one a channel,
    are those of the latents, decode(latents / scaling + shift); the graph holds them, here they are for the reader.
    """

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
        for field in ("input", "output"):
            check_name(f"decoder: {field}", getattr(self, field))
        for field in ("shape", "image"):
            check_shape(f"decoder: {field}", getattr(self, field))
        if len(self.image) != 3:
            raise InputError(f"decoder: image {list(self.image)}, expected [C, H, W], such as [3, 512, 512]")
        check_choice("decoder: precision", self.precision, PRECISIONS)
        if self.fixed_batch is not None and not (is_integer(self.fixed_batch) and self.fixed_batch >= 1):
            raise InputError(f"decoder: fixed_batch {self.fixed_batch!r}, expected an integer of at least 1 or None")
        channels = self.shape[0] if self.shape else 1
        for field in ("scaling", "shift"):
            values: Any = getattr(self, field)
            each = values if isinstance(values, tuple) else (values,) * channels
            if len(each) != channels or not all(map(is_number, each)) or (field == "scaling" and 0 in each):
                zero = " other than 0" if field == "scaling" else ""
                raise InputError(f"decoder: {field} {values!r}, expected a number{zero}, or {channels}, one a channel")

    @property
    def inputs(self) -> tuple[str, ...]:
        """The name of the latents, in a tuple like a network's inputs."""
        return (self.input,)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one image."""
        return self.image

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, every field present; `from_dict` reads it back."""
        return {field.name: as_json(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> DecoderContract:
        """Read `to_dict` data. Raises InputError that names a missing, unknown or unfit field."""
        return cls(**read_fields("decoder", cls, plain))
