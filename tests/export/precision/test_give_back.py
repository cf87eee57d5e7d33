"""Which layers go back to float, on errors that add up exactly."""

from __future__ import annotations

import numpy as np

from pfdiff.export.precision.give_back import choose

COSTS = [1.0, 10.0, 10.0, 1.0, 5.0]


def of(errors: list[float]):
    """(measure of some layers, how often it was asked)."""
    asked: list[int] = []

    def measure(flags: np.ndarray) -> float:
        asked.append(int(flags.sum()))
        return float(np.sqrt(np.sum(np.square(errors)[flags])))

    return measure, asked


def test_all_stay_where_the_bound_holds() -> None:
    measure, asked = of([0.2, 0.3, 0.1, 0.1, 0.4])
    chosen = choose(COSTS, lambda: measure, measure, lambda done, count: None)
    assert chosen.flags.all()
    assert asked == [5]  # one measurement
    assert chosen.alone is None


def test_the_layers_go_back_that_cost_most_for_what_they_gain() -> None:
    measure, _ = of([0.9, 1.0, 0.1, 0.8, 0.1])
    said: list[int] = []
    chosen = choose(COSTS, lambda: measure, measure, lambda done, count: said.append(done))
    assert chosen.flags.tolist() == [False, True, True, False, True] or measure(chosen.flags) <= 1
    assert not chosen.flags[0]
    assert not chosen.flags[3]  # cheap layers, much error
    assert measure(chosen.flags) <= 1
    assert said == [1, 2, 3, 4, 5]


def test_the_sum_is_measured_and_not_believed() -> None:
    """Errors that interact: together twice what their squares say."""
    measure, _ = of([0.6, 0.6, 0.6, 0.6, 0.6])

    def together(flags: np.ndarray) -> float:
        return 0.0 if not flags.any() else measure(flags) * (2 if flags.sum() > 2 else 1.5)

    chosen = choose(COSTS, lambda: measure, together, lambda done, count: None)
    assert together(chosen.flags) <= 1


def test_a_layer_without_a_finite_error_goes_back() -> None:
    errors = np.array([0.1, np.inf, 0.1, 0.1, 0.1])

    def measure(flags: np.ndarray) -> float:
        return float(np.sqrt(np.sum(errors[flags] ** 2)))

    chosen = choose(COSTS, lambda: measure, measure, lambda done, count: None)
    assert chosen.flags.tolist() == [True, False, True, True, True]


def test_none_stay_where_none_fits() -> None:
    chosen = choose(COSTS, lambda: lambda flags: 5.0, lambda flags: 5.0 * flags.any(), lambda done, count: None)
    assert not chosen.flags.any()


def test_layers_without_an_error_of_their_own_on_calibrations_seeds_go_back_too() -> None:
    """Where others' samples differ all the same, as with labels that calibration has not seen."""
    asked: list[int] = []

    def together(flags: np.ndarray) -> float:
        asked.append(int(flags.sum()))
        return 5.0 if flags[2] else 0.5

    found = choose([4.0, 3.0, 2.0, 1.0], lambda: lambda flags: 0.0, together, lambda done, count: None)
    assert found.flags.tolist() == [False, False, False, True]
    assert asked == [4, 3, 2, 1]
