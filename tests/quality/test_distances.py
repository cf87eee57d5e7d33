"""Distances against closed forms, scipy's matrix root, and a loop over all pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from pfdiff import InputError
from pfdiff.quality.distances.metrics import FrechetDistance, kernel_distance, precision_recall


def whitened(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """[n, d] with mean 0 and sample covariance I to rounding, so that closed forms hold exactly."""
    x = rng.standard_normal((n, d))
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T


def test_two_gaussians_have_the_distance_of_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    x, y = whitened(rng, 300, 4), whitened(rng, 200, 4)
    spread, shift = np.array([0.5, 1.0, 2.0, 3.0]), np.array([1.0, 0.0, -2.0, 0.5])
    # Both covariances are diagonal: FD = |shift|^2 + sum of (s_1 - s_2)^2.
    expected = (shift**2).sum() + ((spread - 1) ** 2).sum()
    got = FrechetDistance(x.astype(np.float32))((y * spread + shift).astype(np.float32))
    assert got == pytest.approx(expected, rel=1e-5)


def test_correlated_features_agree_with_scipys_matrix_root() -> None:
    rng = np.random.default_rng(1)
    mix_x, mix_y = rng.standard_normal((2, 7, 7))
    x = (rng.standard_normal((50, 7)) @ mix_x).astype(np.float32)
    y = (rng.standard_normal((61, 7)) @ mix_y + 0.3).astype(np.float32)
    c_x, c_y = (np.cov(one.astype(np.float64), rowvar=False) for one in (x, y))
    mean = x.mean(0, dtype=np.float64) - y.mean(0, dtype=np.float64)
    expected = mean @ mean + np.trace(c_x + c_y - 2 * np.real(sqrtm(c_x @ c_y)))
    assert FrechetDistance(x)(y) == pytest.approx(expected, rel=1e-9)


def test_the_real_side_is_kept_between_calls() -> None:
    rng = np.random.default_rng(2)
    x, y, z = rng.standard_normal((3, 40, 5)).astype(np.float32)
    distance = FrechetDistance(x)
    first = distance(y)
    distance(z)
    assert distance(y) == first
    assert distance(x) == pytest.approx(0, abs=1e-8)


def test_a_singular_covariance_gives_a_finite_distance() -> None:
    """Fewer samples than features."""
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((2, 6, 20)).astype(np.float32)
    c_x, c_y = (np.cov(one.astype(np.float64), rowvar=False) for one in (x, y))
    values, vectors = np.linalg.eigh(c_x)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ c_y @ root).clip(0)).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c_x + c_y) - 2 * cross
    assert FrechetDistance(x)(y) == pytest.approx(expected, rel=1e-5)


def test_kernel_distance_is_the_unbiased_estimate_over_all_pairs() -> None:
    """With subsets of all vectors each subset is the whole set: one number, known as a loop over pairs."""
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((2, 12, 3)).astype(np.float32)
    kernel = lambda a, b: (float(a.astype(np.float64) @ b) / 3 + 1) ** 3  # noqa: E731  # one formula
    same = [kernel(one[i], one[j]) for one in (x, y) for i in range(12) for j in range(12) if i != j]
    cross = [kernel(a, b) for a in x for b in y]
    expected = sum(same) / (12 * 11) - 2 * sum(cross) / 12**2
    mean, spread = kernel_distance(x, y)
    assert mean == pytest.approx(expected, rel=1e-6)
    assert spread == pytest.approx(0, abs=1e-9)


def test_kernel_distance_is_seeded_and_leaves_torchs_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pfdiff.quality.distances.metrics.SUBSETS", 4)
    monkeypatch.setattr("pfdiff.quality.distances.metrics.SUBSET_SIZE", 20)
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((2, 30, 2)).astype(np.float32)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = kernel_distance(x, y)
    assert torch.equal(torch.get_rng_state(), state)
    assert kernel_distance(x, y) == first != kernel_distance(x, y, seed=1)


@pytest.mark.parametrize(("real", "samples"), [(23, 23), (31, 17), (5, 40)])
def test_precision_and_recall_are_those_of_a_loop(monkeypatch: pytest.MonkeyPatch, real: int, samples: int) -> None:
    monkeypatch.setattr("pfdiff.quality.distances.metrics.BLOCK_ELEMENTS", 64)  # several blocks
    rng = np.random.default_rng(real)
    x = rng.standard_normal((real, 4)).astype(np.float32)
    y = (1.3 * rng.standard_normal((samples, 4)) + 0.4).astype(np.float32)

    def inside(point: np.ndarray, manifold: np.ndarray) -> bool:
        for i, centre in enumerate(manifold):
            others = sorted(np.linalg.norm(centre - one) for j, one in enumerate(manifold) if j != i)
            if np.linalg.norm(point - centre) <= others[2]:
                return True
        return False

    expected = np.mean([inside(p, x) for p in y]), np.mean([inside(p, y) for p in x])
    assert precision_recall(x, y) == pytest.approx(expected, abs=1e-12)
    assert 0 < expected[0] < 1


def test_the_same_set_has_precision_and_recall_one_and_a_far_one_none() -> None:
    x = np.random.default_rng(6).standard_normal((20, 3)).astype(np.float32)
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)


def test_too_few_samples_are_one_clear_line() -> None:
    x = np.zeros((5, 2), np.float32)
    with pytest.raises(InputError, match="expected at least 2; draw more"):
        FrechetDistance(x)(x[:1])
    with pytest.raises(InputError, match="expected more than 3 of each"):
        precision_recall(x, x[:3])
