"""Scale and zero point of a tensor in eight bits.

    q = clip(round(x / scale) + zero, lowest, highest),   x ~ (q - zero) scale

The widest range of an activation makes every step coarse for a few values; what remains outside a range is clipped.
Which rule is best depends on the network, so samples decide (quantise.py):

    full         all values seen
    most         all but a hundredth of a percent, at each end
    least error  both ends shrunk alike, until rounding and clipping together cost least

Weights have a scale for each output channel and their full range. Scale and zero point of a range are ONNX Runtime's
(`compute_scale_zp`).

    uint8  0..255, any zero point: what a CPU multiplies with int8 weights, of 7 bits (-64..64) where it has no VNNI
    int8   -127..127, zero point 0: what TensorRT takes
    fp8    float8 e4m3, -448..448, no zero point
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from ...engine import machine
from ...engine.errors import InputError

Array = NDArray[Any]

RULES: Final = ("most", "least error", "full")
TAIL = 1e-4  # of the values, that rule "most" leaves outside at each end
SHARES: Final = np.geomspace(1.0, 0.15, 28)  # of the full range, that are tried
LARGEST_FP8 = 448.0
LEAST_SCALE = 1e-6  # of a float16 scale: below it has too few digits


@final
@dataclass(frozen=True)
class Kind:
    """How activations and weights are stored. halves: scales are float16, as the layers between are.

    most: the largest absolute number of a weight.
    """

    name: str
    symmetric: bool
    halves: bool
    most: float = 127.0

    @property
    def levels(self) -> tuple[int, int]:
        """Least and largest number of an activation."""
        return (-127, 127) if self.symmetric else (0, 255)


INT8_CPU: Final = Kind("int8", symmetric=False, halves=False)
INT8_SMALL: Final = Kind("int8", symmetric=False, halves=False, most=64.0)  # engine/machine.py: adds_in_16_bits
INT8_GPU: Final = Kind("int8", symmetric=True, halves=True)
FP8: Final = Kind("fp8", symmetric=True, halves=True, most=LARGEST_FP8)


@final
@dataclass(frozen=True)
class Range:
    """Of an activation: scale, zero point, and the values that are not clipped."""

    scale: float
    zero: int
    low: float
    high: float


def kind_of(precision: str, *, for_gpu: bool) -> Kind:
    """How the eight bits of a precision are stored, of a CPU by what this one has."""
    if precision == "fp8":
        return FP8
    return INT8_GPU if for_gpu else INT8_SMALL if machine.adds_in_16_bits() else INT8_CPU


def fitted(kind: Kind, precision: str) -> Kind:
    """The kind for a part whose layers in floating point are of `precision`: fp16 scales only between fp16 layers."""
    return replace(kind, halves=kind.halves and precision == "fp16")


def rules_for(kind: Kind) -> tuple[str, ...]:
    """The rules worth a trial: float8 has small steps for small values whatever its range."""
    return ("full",) if kind.name == "fp8" else RULES


def activation_range(values: Array, low: float, high: float, kind: Kind, name: str, rule: str) -> Range:
    """The range of a tensor of which `values` were seen, `low` and `high` its ends. Raises InputError: not finite."""
    if not np.isfinite([low, high]).all():
        raise InputError(
            f"calibration: tensor '{name}' has infinite values or NaN; build with fp32 and check the network"
        )
    if rule == "most":
        low, high = (float(one) for one in np.quantile(values, (TAIL, 1 - TAIL)))
    low, high = min(low, 0.0), max(high, 0.0)
    if kind.symmetric:
        high = max(-low, high)
        low = -high
    if kind.name == "fp8":
        scale = _stored(max(high, 1e-30) / LARGEST_FP8, kind)
        return Range(scale, 0, -scale * LARGEST_FP8, scale * LARGEST_FP8)
    if rule != "least error":
        return _range(low, high, kind)
    best, least = None, np.inf
    for share in SHARES:
        tried = _range(low * share, high * share, kind)
        error = float(np.mean(np.square(_rounded(values, tried, kind) - values, dtype=np.float64)))
        if error < least:
            best, least = tried, error
    return best or _range(low, high, kind)


def _range(low: float, high: float, kind: Kind) -> Range:
    from onnxruntime.quantization.quant_utils import compute_scale_zp

    least, most = kind.levels
    ends = (np.array(one, np.float32) for one in (low, high, least, most))
    rmin, rmax, qmin, qmax = ends
    zero, scale = compute_scale_zp(rmin, rmax, qmin.astype(np.int32), qmax.astype(np.int32), symmetric=kind.symmetric)
    factor, offset = _stored(float(scale), kind), int(zero)
    return Range(factor, offset, (least - offset) * factor, (most - offset) * factor)


def _rounded(values: Array, given: Range, kind: Kind) -> Array:
    least, most = kind.levels
    return (np.clip(np.rint(values / given.scale) + given.zero, least, most) - given.zero) * given.scale


def _stored(scale: float, kind: Kind) -> float:
    """The scale as the graph holds it: rounded before anything is divided by it."""
    return float(np.float16(max(scale, LEAST_SCALE))) if kind.halves else float(np.float32(max(scale, 1e-30)))


def weight_scales(weights: Array, axis: int, kind: Kind) -> Array:
    """float32 [channels] along `axis`, as the graph holds them."""
    others = tuple(one for one in range(weights.ndim) if one != axis)
    largest = np.abs(weights).max(axis=others) if weights.size else np.zeros(weights.shape[axis])
    return np.array([_stored(float(one) / kind.most, kind) for one in largest], np.float32)


def quantised_weights(weights: Array, scales: Array, axis: int, kind: Kind) -> Array:
    """int8, or float8 e4m3 (ml_dtypes), like `weights`."""
    import ml_dtypes

    form = [1] * weights.ndim
    form[axis] = -1
    ratio = weights.astype(np.float32) / scales.reshape(form)
    if kind.name == "fp8":
        return np.clip(ratio, -LARGEST_FP8, LARGEST_FP8).astype(ml_dtypes.float8_e4m3fn)
    return np.clip(np.rint(ratio), -kind.most, kind.most).astype(np.int8)
