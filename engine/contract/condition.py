"""One further input of a network beside x and the time: a class label, a text's embedding, a guidance scale."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError, shown
from ..json_fields import check_choice, check_name, check_shape, is_integer, is_number, is_strings

# The dtypes of a condition, with the least and the largest number of each.
DTYPE_RANGES: dict[str, tuple[float, float]] = {
    "float32": (-(2 - 2**-23) * 2.0**127, (2 - 2**-23) * 2.0**127),
    "float16": (-65504.0, 65504.0),
    "bfloat16": (-(2 - 2**-7) * 2.0**127, (2 - 2**-7) * 2.0**127),
    "int64": (-(2**63), 2**63 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "bool": (0, 1),
}
CONDITION_DTYPES = tuple(DTYPE_RANGES)
LONGEST_TEXT = 120  # of a condition as it is written on a command line
INPAINTING = INPAINT_MASK, MASKED_IMAGE = "inpaint_mask", "masked_image_latents"  # of networks that inpaint themselves
RESERVED_NAMES = ("seeds", "noise", "nfe", "batch")  # words of `engine.sample` and of the ONNX graph


@dataclass(frozen=True)
class Condition:
    """One further input of a network, fed as [batch, *shape].

    `default` is the value when the caller gives none: one number for every element or, for shape [n], n numbers.
    Without a default the condition must be given. `low` and `high` bound integers, both included. `labels` names the
    integers 0, 1, 2, ... `alias` is a second name that callers may use. Raises InputError when a field does not fit.
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
            least, most = DTYPE_RANGES[self.dtype]
            fits = self.dtype.startswith("int") and is_integer(bound) and least <= bound <= most
            if bound is not None and not fits:
                raise InputError(
                    f"{where}: {field} {shown(bound)} with dtype {self.dtype}; bounds are integers of an int dtype"
                )
        if self.low is not None and self.high is not None and self.low > self.high:
            raise InputError(f"{where}: low {shown(self.low)} is above high {shown(self.high)}; swap them")
        if not is_strings(self.labels):
            raise InputError(f"{where}: labels {shown(self.labels)}, expected a tuple of strings")
        if self.alias != "":
            check_name(f"{where}: alias", self.alias)
        if self.default is not None:
            numbers = self.default if isinstance(self.default, tuple) else (self.default,)
            if not all(is_number(one) or isinstance(one, bool) for one in numbers):
                raise InputError(f"{where}: default {shown(self.default)}, expected one finite number or None")
            if isinstance(self.default, tuple) and self.shape != (len(numbers),):
                raise InputError(
                    f"{where}: default of {len(numbers)} numbers, expected one, or shape {list(self.shape)}"
                )
            if not self.dtype.startswith(("float", "bfloat")) and any(one != int(one) for one in numbers):
                raise InputError(f"{where}: default {shown(self.default)} is no integer, but its dtype is {self.dtype}")
            self._check_range(np.asarray(numbers), self.name)

    @cached_property
    def _range(self) -> tuple[float, float]:
        """(least, largest) value: of the dtype, and within `low` and `high`. Python's numbers, for exact comparison."""
        low, high = DTYPE_RANGES[self.dtype]
        return max(low, low if self.low is None else self.low), min(high, high if self.high is None else self.high)

    @cached_property
    def _fed(self) -> np.dtype[Any]:
        """The dtype of `values`: float32 for float16 and bfloat16, which the backend casts; NumPy has no bfloat16."""
        return np.dtype("float32" if self.dtype in ("float16", "bfloat16") else self.dtype)

    def _check_range(self, values: NDArray[Any], called: str) -> None:
        if not values.size:
            return
        low, high = self._range
        least = values.item() if values.size == 1 else values.min().item()
        most = least if values.size == 1 else values.max().item()
        if low <= least and most <= high:  # false for NaN
            return
        if not (is_number(least) and is_number(most)):
            raise InputError(f"{place_of(called)}: got NaN, infinity or beyond, expected finite numbers")
        got = shown(least) if least == most else f"{shown(least)}..{shown(most)}"
        raise InputError(f"{place_of(called)}: got {got}, expected values in {low}..{high} ({self.dtype})")

    def values(
        self, given: ArrayLike | str | Sequence[str] | None, batch: int, called: str | None = None
    ) -> NDArray[Any]:
        """The array [batch, *shape] to feed for the value that the caller gave.

        `given` is one value for all samples (shape `shape`), one for each ([batch, *shape]), a label's name or a list
        of names, or None for the default. float16 and bfloat16 come back as float32: the backend casts. called: the
        name that the caller used, for messages; by default the alias where there is one.
        Raises InputError on a missing value, a wrong shape, an unknown label, a fraction for an integer, NaN,
        and a value beyond the dtype's range.
        """
        called = called or self.alias or self.name
        fed = np.empty((batch, *self.shape), self._fed)
        if given is None:
            if self.default is None:
                article = "an" if self.dtype.startswith("int") else "a"
                what = f"{self.dtype} {list(self.shape)}" if self.shape else f"{article} {self.dtype} value"
                option = called if called.startswith("--") else f"{called}="
                raise InputError(f"{place_of(called)} is missing; give {option} {what}")
            fed[...] = self.default
            return fed
        values = as_array(self._from_labels(given, called), called)
        if values.dtype.kind not in "biuf":
            raise InputError(f"{place_of(called)}: got {values.dtype}, expected numbers of dtype {self.dtype}")
        if values.dtype.kind == "b" and self.dtype != "bool" and not self.shape:
            raise InputError(f"{place_of(called)}: got true or false, expected numbers of dtype {self.dtype}")
        if values.shape not in (self.shape, (1, *self.shape), (batch, *self.shape)):
            if not self.shape and values.ndim == 1:
                expected = "1 sample; give 1" if batch == 1 else f"{batch} samples; give 1 or {batch}"
                raise InputError(f"{place_of(called)}: {len(values)} values for {expected}")
            raise InputError(
                f"{place_of(called)}: got shape {list(values.shape)}, expected {list(self.shape)} for all samples "
                f"or {[batch, *self.shape]}, one for each"
            )
        self._check_range(values, called)
        if self._fed.kind != "f" and values.dtype.kind == "f" and (values != np.trunc(values)).any():
            raise InputError(f"{place_of(called)}: got fractions, expected integers ({self.dtype})")
        fed[...] = values
        return fed

    def _from_labels(self, given: Any, called: str) -> Any:
        names = [given] if isinstance(given, str) else given
        if not (isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names)):
            return given
        for name in names:
            if name not in self.labels:
                known = ", ".join(self.labels) or "none, this condition takes numbers"
                raise InputError(f"{place_of(called)}: unknown label '{name}'; known labels: {known}")
        numbers = [self.labels.index(name) for name in names]
        return numbers[0] if isinstance(given, str) else numbers


def place_of(called: str) -> str:
    """How a message begins: with the option as it was typed, or `condition 'name'`."""
    return called if called.startswith("--") else f"condition '{called}'"


def as_array(given: Any, called: str) -> NDArray[Any]:
    """The same as an array. Raises InputError for lists of unequal lengths and integers beyond 64 bits."""
    try:
        values = np.asarray(given)
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"{place_of(called)}: got lists of unequal lengths, expected one number or row each") from None
    if values.dtype == object and all(isinstance(one, int) for one in values.flat):
        raise InputError(f"{place_of(called)}: got an integer beyond 64 bits, expected a smaller one")
    return values


def parse_condition(text: str) -> Condition:
    """The condition that `name:dtype[:shape][:low..high][=default]` means, as written on a command line.

    For instance `label:int64:0..9=9`, `context:float32:77x768`. Raises InputError.
    """
    described, equals, last = text.partition("=")
    name, *rest = described.split(":")
    usage = (
        f"condition '{text[:LONGEST_TEXT]}': expected name:dtype[:shape][:low..high][=default], such as "
        "label:int64:0..9=9 or text:float32:77x768"
    )
    if not 1 <= len(rest) <= 3:
        raise InputError(usage)
    shape: tuple[int, ...] = ()
    low = high = default = None
    try:
        if len(text) > LONGEST_TEXT:
            raise ValueError
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
