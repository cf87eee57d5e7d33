"""The beta family against SciPy, Align Your Steps against its published times."""

from __future__ import annotations

import numpy as np
import pytest

from pfdiff.engine.compiler.grid import make_grid
from pfdiff.engine.compiler.published_grids import beta_quantile
from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.engine.errors import InputError


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.5, 3), (6.23, 1.34)])
def test_quantiles_are_scipys(a: float, b: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    u = np.linspace(0, 1, 33)
    np.testing.assert_allclose(beta_quantile(u, a, b), stats.beta.ppf(u, a, b), atol=1e-6)


def test_beta_with_both_1_is_uniform_in_time() -> None:
    grid = make_grid("beta:1,1", parse_schedule("vp"), 4)
    first = 0.001  # the least noisy time of vp
    np.testing.assert_allclose(grid, [*(first + (1 - first) * np.array([1, 0.75, 0.5, 0.25])), 0], atol=1e-6)


def test_two_ways_to_write_the_parameters() -> None:
    schedule = parse_schedule("linear:1000")
    np.testing.assert_array_equal(make_grid("beta:0.8,0.7", schedule, 6), make_grid("beta:a=0.8&b=0.7", schedule, 6))


@pytest.mark.parametrize("grid", ["beta:0.1,0.6", "beta:0.6", "beta:0.6,0.6,0.6", "beta:x,y", "ays_sd:1"])
def test_what_is_no_such_grid_is_refused(grid: str) -> None:
    with pytest.raises(InputError):
        make_grid(grid, parse_schedule("linear:1000"), 4)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("ays_sd", [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]),
        ("ays_sdxl", [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]),
    ],
)
def test_ten_steps_are_the_published_ones(name: str, published: list[int]) -> None:
    """The published sigmas have three digits, so times agree to a few of a thousand."""
    grid = make_grid(name, parse_schedule("scaled_linear:1000"), 10)
    assert np.abs(grid[:-1] - published).max() <= 8
