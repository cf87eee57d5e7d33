"""engine/philox.py: the draws of a seed against published words, and their statistics."""

from __future__ import annotations

import numpy as np
import pytest

from pfdiff.engine.philox import BLOCK, fill_numpy

MASK = 0xFFFFFFFF
SEEDS = np.array([0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1, 0x299F31D0A4093822], np.uint64)


def philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox-4x32-10 in Python's integers, as in the paper (Salmon et al., SC 2011)."""
    (c_0, c_1, c_2, c_3), (k_0, k_1) = counter, key
    for _ in range(10):
        a, b = 0xD2511F53 * c_0, 0xCD9E8D57 * c_2
        c_0, c_1, c_2, c_3 = (b >> 32) ^ c_1 ^ k_0, b & MASK, (a >> 32) ^ c_3 ^ k_1, a & MASK
        k_0, k_1 = (k_0 + 0x9E3779B9) & MASK, (k_1 + 0xBB67AE85) & MASK
    return c_0, c_1, c_2, c_3


def test_the_integers_here_give_the_published_words() -> None:
    """Random123's known answers (kat_vectors)."""
    assert philox((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox((MASK,) * 4, (MASK, MASK)) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)


@pytest.mark.parametrize("draw", [0, 1, 2, 20, 2**32 - 1])
def test_a_draw_is_the_third_word_of_the_counter(draw: int) -> None:
    elements = BLOCK + 3
    found = np.empty((len(SEEDS), elements), np.float32)
    fill_numpy(found, SEEDS, draw)
    for row, seed in zip(found, SEEDS.tolist(), strict=True):
        for e in (0, 1, 5, BLOCK - 1, BLOCK, elements - 1):
            r_0, r_1, _, _ = philox((e, 0, draw, 0), (seed & MASK, seed >> 32))
            u_1, u_2 = (r_0 + 0.5) / 2**32, (r_1 + 0.5) / 2**32
            assert row[e] == pytest.approx(np.sqrt(-2 * np.log(u_1)) * np.cos(2 * np.pi * u_2), rel=1e-6, abs=1e-7)


def test_statistics_of_ten_million() -> None:
    """50 seeds, 10 draws, 20,000 elements: moments, chi-square, and no correlation along any axis."""
    seeds, draws, elements = 50, 10, 20_000
    z = np.empty((draws, seeds, elements), np.float32)
    for draw in range(draws):
        fill_numpy(z[draw], np.arange(seeds, dtype=np.uint64), draw)
    count = z.size
    squares = z * z
    for values, expected, variance in ((z, 0, 1), (squares, 1, 2), (squares * z, 0, 15), (squares * squares, 3, 96)):
        assert abs(np.mean(values, dtype=np.float64) - expected) < 5 * np.sqrt(variance / count)

    # 256 cells of equal probability: chi-square has mean 255 and deviation sqrt(510).
    stats = pytest.importorskip("scipy.stats")
    edges = stats.norm.ppf(np.arange(1, 256) / 256)
    cells = np.diff([0, *np.searchsorted(np.sort(z, axis=None), edges), count])
    chi_square = np.sum((cells - count / 256) ** 2) / (count / 256)
    assert abs(chi_square - 255) < 5 * np.sqrt(510)

    # Neighbouring elements; all pairs of draws, and of seeds.
    assert abs(np.mean(z[..., 1:] * z[..., :-1], dtype=np.float64)) < 5 / np.sqrt(count)
    for axis in (0, 1):
        flat = np.moveaxis(z, axis, 0).reshape(z.shape[axis], -1)
        pairs = flat @ flat.T / flat.shape[1]
        assert np.abs(pairs[~np.eye(len(flat), dtype=bool)]).max() < 5 / np.sqrt(flat.shape[1])


def test_no_seed_has_the_step_noise_of_another() -> None:
    """Draws 0 to 20 of 5000 seeds: no two begin with the same four elements."""
    seeds = np.arange(5000, dtype=np.uint64)
    z = np.empty((21, len(seeds), 4), np.float32)
    for draw in range(21):
        fill_numpy(z[draw], seeds, draw)
    assert len(np.unique(z.reshape(-1, 4), axis=0)) == 21 * len(seeds)
