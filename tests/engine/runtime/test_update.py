"""engine/runtime/update.py: one product and one look at the output, compiled and in NumPy, against float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pfdiff.engine.runtime import update
from pfdiff.engine.runtime.update import MULTIPLICATIONS, combine_numpy

compiled = pytest.param(
    update.combine_compiled,
    id="compiled",
    marks=pytest.mark.skipif(
        update.combine_compiled is None, reason="engine/runtime/_cpu.cpp was not compiled when pfdiff was installed"
    ),
)
both = pytest.mark.parametrize("combine", [compiled, pytest.param(combine_numpy, id="numpy")])
Combine = Callable[[np.ndarray, np.ndarray, np.ndarray], bool]


def matrices(rows: int, inputs: int, elements: int, room: int = 0) -> tuple[np.ndarray, ...]:
    """W [rows, inputs], its source and a target of NaN, whose rows lie `room` elements further apart than needed."""
    generator = np.random.default_rng(elements)
    source = generator.standard_normal((inputs, elements + room)).astype(np.float32)[:, :elements]
    target = np.full((rows, elements + room), np.nan, np.float32)
    return generator.standard_normal((rows, inputs)).astype(np.float32), source, target


@both
@pytest.mark.parametrize("elements", [1, 15, 784, 1023, 1024, 1025, MULTIPLICATIONS + 3])
@pytest.mark.parametrize(("rows", "inputs"), [(1, 1), (1, 2), (2, 3), (5, 6)])
def test_product_is_that_of_float64(combine: Combine, rows: int, inputs: int, elements: int) -> None:
    W, source, target = matrices(rows, inputs, elements, room=3)
    assert combine(W, source, target[:, :elements]) is True
    exact = W.astype(np.float64) @ source.astype(np.float64)
    bound = inputs * np.finfo(np.float32).eps * (np.abs(W).astype(np.float64) @ np.abs(source))
    assert (np.abs(target[:, :elements] - exact) <= bound).all()
    assert np.isnan(target[:, elements:]).all()  # nothing beyond


@both
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 500, 1999])
def test_what_is_not_finite_in_the_output_is_reported(combine: Combine, value: float, place: int) -> None:
    W, source, target = matrices(2, 3, 2000)
    source[-1, place] = value
    assert combine(W, source, target) is False


@both
def test_large_values_and_old_states_are_no_fault_of_the_output(combine: Combine) -> None:
    W, source, target = matrices(2, 3, 2000)
    source[-1] = np.finfo(np.float32).max  # their sum overflows
    source[0, 0] = np.nan
    assert combine(W, source, target) is True


@pytest.mark.skipif(update.combine_compiled is None, reason="engine/runtime/_cpu.cpp was not compiled")
def test_an_element_has_the_same_bits_wherever_it_stands() -> None:
    W, source, target = matrices(3, 4, 5000)
    update.combine(W, source, target)
    for start, stop in ((0, 7), (1020, 1030), (3001, 5000)):
        part = np.empty((3, stop - start), np.float32)
        update.combine(W, source[:, start:stop], part)
        np.testing.assert_array_equal(part.view(np.uint32), target[:, start:stop].copy().view(np.uint32))


@pytest.mark.skipif(update.combine_compiled is None, reason="engine/runtime/_cpu.cpp was not compiled")
@pytest.mark.parametrize(
    "spoil",
    [
        lambda W, source, target: (W[:, :2], source, target),
        lambda W, source, target: (W, source[:2], target),
        lambda W, source, target: (W, source[:, :9], target),
        lambda W, source, target: (W[:1], source, target),
        lambda W, source, target: (W.astype(np.float64), source, target),
        lambda W, source, target: (W, source[:, ::2], target[:, ::2]),
        lambda W, source, target: (W, source[0], target),
        lambda W, source, target: (W[:, :0], source[:0], target),
    ],
    ids=["W narrow", "source low", "source short", "W low", "float64", "strided", "one row", "no rows"],
)
def test_memory_that_does_not_fit_is_refused_and_left_alone(spoil: Callable[..., tuple[np.ndarray, ...]]) -> None:
    W, source, target = matrices(2, 3, 20)
    with pytest.raises(ValueError, match="combine: expected update"):
        update.combine(*spoil(W, source, target))
    assert np.isnan(target).all()
