"""Scales and zero points, against brute force in float64; what a layer's weights become."""

from __future__ import annotations

import numpy as np
import pytest

from pfdiff.engine.errors import InputError
from pfdiff.export.precision.ranges import (
    FP8,
    INT8_CPU,
    INT8_GPU,
    Kind,
    activation_range,
    quantised_weights,
    weight_scales,
)

VALUES = np.concatenate([np.random.default_rng(0).standard_normal(50_000).astype(np.float32), [np.float32(60)]])


def through(values: np.ndarray, scale: float, zero: int, levels: tuple[int, int]) -> np.ndarray:
    """float64: what QuantizeLinear and DequantizeLinear make of values."""
    q = np.clip(np.rint(values.astype(np.float64) / scale) + zero, *levels)
    return (q - zero) * scale


@pytest.mark.parametrize("kind", [INT8_CPU, INT8_GPU])
def test_the_least_error_is_less_than_that_of_the_full_range(kind: Kind) -> None:
    low, high = float(VALUES.min()), float(VALUES.max())
    found = {rule: activation_range(VALUES, low, high, kind, "x", rule) for rule in ("full", "most", "least error")}
    errors = {
        rule: float(np.mean((through(VALUES, one.scale, one.zero, kind.levels) - VALUES) ** 2))
        for rule, one in found.items()
    }
    assert errors["least error"] <= min(errors.values()) * 1.0000001
    assert found["most"].high < 5 < found["full"].high
    assert kind.levels[0] <= found["full"].zero <= kind.levels[1]
    full = through(VALUES, found["full"].scale, found["full"].zero, kind.levels)
    assert np.abs(full - VALUES).max() <= found["full"].scale * 0.51  # nothing is clipped


def test_zero_is_a_number_of_every_range() -> None:
    one = activation_range(VALUES + 100, 90.0, 160.0, INT8_CPU, "x", "full")
    assert through(np.zeros(1), one.scale, one.zero, (0, 255)) == 0


def test_symmetric_kinds_have_no_zero_point_and_float16_scales() -> None:
    for kind in (INT8_GPU, FP8):
        one = activation_range(VALUES, -4.0, 60.0, kind, "x", "full")
        assert one.zero == 0
        assert one.scale == float(np.float16(one.scale))


@pytest.mark.parametrize(("kind", "steps"), [(INT8_CPU, 0.5), (INT8_GPU, 0.52), (FP8, 16.1)])
def test_weights_are_within_half_a_step_of_their_channel(kind: Kind, steps: float) -> None:
    weights = np.random.default_rng(1).standard_normal((6, 5, 3, 3)).astype(np.float32) * np.logspace(-3, 2, 6)[
        :, None, None, None
    ].astype(np.float32)
    scales = weight_scales(weights, 0, kind)
    numbers = quantised_weights(weights, scales, 0, kind).astype(np.float64)
    form = scales.astype(np.float64)[:, None, None, None]
    assert (np.abs(numbers * form - weights) <= steps * form * 1.0001).all()
    assert np.abs(numbers).max() > 100  # the range is used


def test_values_that_are_not_finite_are_named() -> None:
    with pytest.raises(InputError, match="tensor 'conv_7' has infinite values or NaN"):
        activation_range(VALUES, -np.inf, 1.0, INT8_CPU, "conv_7", "full")
    with pytest.raises(InputError, match="infinite values or NaN"):
        activation_range(VALUES, np.nan, 1.0, FP8, "conv_7", "full")
