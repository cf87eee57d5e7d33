"""Grids: published times exactly, the rules' definitions, no zero-length step ever, and clear errors."""

from __future__ import annotations

import numpy as np
import pytest

import pfdiff
from pfdiff.engine.compiler.grid import RULES, make_grid
from pfdiff.engine.compiler.schedule import parse_schedule

LINEAR = parse_schedule("linear:1000")


def test_uniform_and_quadratic_are_ddims():
    np.testing.assert_array_equal(make_grid("uniform", LINEAR, 7), [999, 832, 666, 499, 333, 166, 0, -1])
    np.testing.assert_array_equal(make_grid("quadratic", LINEAR, 7), [800, 555, 355, 200, 88, 22, 0, -1])


def test_trailing_and_leading_are_table_2_of_2305_08891():
    np.testing.assert_array_equal(
        make_grid("trailing", LINEAR, 10), [999, 899, 799, 699, 599, 499, 399, 299, 199, 99, -1]
    )
    np.testing.assert_array_equal(
        make_grid("leading:offset=1", LINEAR, 10), [901, 801, 701, 601, 501, 401, 301, 201, 101, 1, -1]
    )


def test_karras_is_equation_5():
    grid = make_grid("karras", parse_schedule("edm"), 5)
    ramp = (80 ** (1 / 7) + np.arange(5) / 4 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(grid, [*ramp, 0], rtol=1e-12)


def test_logsnr_is_even_in_lambda():
    vp = parse_schedule("vp")
    steps = np.diff(vp.lam(make_grid("logsnr", vp, 9, end="first")))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)


def test_shifted_flow_is_equation_23_of_2403_03206():
    u = np.arange(4, 0, -1) / 4
    np.testing.assert_allclose(make_grid("trailing", parse_schedule("flow:shift=3"), 4), [*(3 * u / (1 + 2 * u)), 0])


@pytest.mark.parametrize("text", ["linear:1000", "cosine:60", "cosine:300", "vp", "edm", "flow"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("end", ["clean", "first"])
@pytest.mark.parametrize("gap", [1, 2, 3])
def test_always_strictly_decreasing(text, rule, end, gap):
    schedule = parse_schedule(text)
    start = 0.99 if text == "flow" else None
    for intervals in (1, 2, 5, 19):
        if rule == "leading" and end == "first" and not schedule.discrete:
            continue  # its last point is the end already: refused, see below
        grid = make_grid(rule, schedule, intervals, start, end, gap)
        assert len(grid) == intervals + 1 + (gap > 1 and end == "clean")
        assert np.all(np.diff(grid) < 0)
        assert grid[-1] == (schedule.clean if end == "clean" else schedule.first)
        if schedule.discrete:
            trained = grid[grid != schedule.clean]
            assert np.all(trained == np.round(trained))
            assert np.all(-np.diff(trained) >= gap)


@pytest.mark.parametrize("rule", ["quadratic", "logsnr"])
def test_duplicates_are_moved_apart(rule):
    # N = 20, k = 1 has 39 intervals, and these rules round several of the lowest times to one (trap 7).
    grid = make_grid(rule, LINEAR, 39)
    assert len(set(grid)) == 40
    assert grid[-2:].tolist() == [0, -1]


def test_as_many_points_as_the_schedule_has():
    np.testing.assert_array_equal(make_grid("logsnr", parse_schedule("cosine:20"), 20), np.arange(19, -2, -1))


def test_t_start_and_end():
    assert make_grid("uniform", LINEAR, 4, t_start=600)[0] == 600
    assert make_grid("quadratic", LINEAR, 4, t_start=600)[0] == 600
    assert make_grid("uniform", LINEAR, 4, end=100)[-1] == 100
    assert make_grid("uniform", parse_schedule("vp"), 4, end=1e-2).tolist()[-1] == pytest.approx(1e-2)
    assert make_grid([700, 30, -1], LINEAR, 2).tolist() == [700, 30, -1]
    assert make_grid("700,30,-1", LINEAR, 2).tolist() == [700, 30, -1]


@pytest.mark.parametrize(
    ("grid", "intervals", "options", "says"),
    [
        ("uniformly", 4, {}, "unknown grid 'uniformly'; known: uniform"),
        ("karras:rho=x", 4, {}, "expected key=number"),
        ("karras:tau=7", 4, {}, "grid karras has no parameter 'tau'; it has rho"),
        ("quadratic:fraction=2", 4, {}, "out of range"),
        ("uniform", 1001, {}, "needs 1001 times but the schedule has 1000"),
        ("uniform", 500, {"gap": 3}, "needs 501 times but the schedule has 334"),
        ("uniform", 4, {"t_start": 1000}, "time 1000 is outside"),
        ("uniform", 4, {"t_start": 5, "end": 10}, "t_start 5 is not above the grid's end 10"),
        ("uniform", 4, {"end": "last"}, "unknown end 'last'; expected clean, first or a time"),
        ([999, 500, -1], 3, {}, "take 4 grid times, got 3"),
        ([999, 500, 500, -1], 3, {}, "must fall strictly"),
        ([999, 600.5, 500, -1], 3, {}, "not an integer"),
        ([1200, 600, 500, -1], 3, {}, "outside this schedule"),
        ([999, 998, 500, 0], 3, {"gap": 2}, "at least 2 apart"),
        ([999, 500, -1], 2, {"t_start": 800}, "contradict each other"),
        (["a", "b"], 1, {}, "is not a list of numbers"),
    ],
)
def test_bad_grids(grid, intervals, options, says):
    with pytest.raises(pfdiff.InputError) as caught:
        make_grid(grid, LINEAR, intervals, **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_grids_of_continuous_schedules():
    with pytest.raises(pfdiff.InputError, match="does not fall strictly"):
        make_grid("leading", parse_schedule("vp"), 4, end="first")
    with pytest.raises(pfdiff.InputError, match="cannot start at time 1, where alpha is 0"):
        make_grid("logsnr", parse_schedule("flow"), 4)
    with pytest.raises(pfdiff.InputError, match=r"at least 0\.001"):
        make_grid([1.0, 1e-4, 0], parse_schedule("vp"), 2)
