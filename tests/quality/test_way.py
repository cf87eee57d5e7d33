"""The reference's way between its times, against the exact way of a Gaussian."""

from __future__ import annotations

import numpy as np
import pytest

from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.quality.refining.way import PARTS, Way
from pfdiff.quality.sampling.reference import Paths


@pytest.mark.parametrize("schedule", ["linear:1000", "vp", "edm", "flow"])
def test_states_between_are_nearly_exact(schedule):
    """Of data N(0, 0.25) the way is x(t) = sqrt(0.25 alpha^2 + sigma^2) times a constant."""
    process = parse_schedule(schedule)
    angles = np.linspace(np.arctan2(float(process.alpha(process.last)), float(process.sigma(process.last))), 1.4, 24)
    times = np.array([process.last, *process.time_from_lambda(np.log(np.tan(angles[1:])))])
    times = np.unique(times.round() if process.discrete else times)[::-1]
    constant = np.array([[1.5, -0.3], [0.2, 2.0]])

    def exact(t: float) -> np.ndarray:
        return np.sqrt(0.25 * float(process.alpha(t)) ** 2 + float(process.sigma(t)) ** 2) * constant

    way = Way(Paths(times, np.stack([exact(t) for t in times]).astype(np.float32)), schedule)
    assert set(times) < set(way.times)
    assert len(times) < len(way.times) <= PARTS * (len(times) - 1) + 1
    assert np.all(np.diff(way.times) < 0)
    np.testing.assert_array_equal(way.times[way.known], times)
    if process.discrete:
        assert np.all(way.times == way.times.round())
    for place, t in enumerate(way.times):
        np.testing.assert_allclose(way.state(place, 2), exact(t).ravel(), rtol=2e-3)
        np.testing.assert_allclose(way.state(place, 1), exact(t)[0], rtol=2e-3)


def test_without_room_the_times_are_the_references():
    times = np.array([5.0, 4.0, 2.0, 1.0])
    way = Way(Paths(times, np.zeros((4, 1, 1), np.float32)), "linear:1000")
    assert way.times.tolist() == [5, 4, 3, 2, 1]
    assert way.known == [0, 1, 3, 4]
    assert way.has_between
    assert not Way(Paths(times[:2], np.zeros((2, 1, 1), np.float32)), "linear:1000").has_between


def test_slides_go_along_the_references_times_or_all():
    way = Way(Paths(np.array([9.0, 6.0, 3.0]), np.zeros((3, 1, 1), np.float32)), "linear:1000")
    assert way.times.tolist() == [9, 8, 7, 6, 5, 4, 3]
    assert [way.slid(0, slide, along_known=True) for slide in (1, 2, 3, -1)] == [3, 6, None, None]
    assert [way.slid(4, slide, along_known=False) for slide in (1, -2, 3)] == [5, 2, None]
    assert [way.slid(4, slide, along_known=True) for slide in (-1, 1)] == [3, 6]  # from between
