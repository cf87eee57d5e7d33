"""Seeds, as they are typed and as ranges."""

from __future__ import annotations

import pytest
import torch

import pfdiff
from pfdiff.cli.arguments.values import seeds_from


def test_seeds_of_any_size() -> None:
    assert seeds_from("0-2,007,18446744073709551615") == [0, 1, 2, 7, 2**64 - 1]


@pytest.mark.parametrize("seeds", [range(10**12), range(10**30), range(0, 10**15, 3), range(10**12, 0, -1)])
def test_a_range_beyond_memory_is_refused_at_once(seeds: range) -> None:
    with pytest.raises(pfdiff.InputError, match=r"expected (at most 16777216|an integer in 0)"):
        pfdiff.noise(seeds, (1,))


def test_a_range_gives_its_seeds() -> None:
    for seeds in (range(5), range(7, 0, -3), range(0), range(2**64 - 2, 2**64)):
        assert torch.equal(pfdiff.noise(seeds, (2, 3)), pfdiff.noise(list(seeds), (2, 3)))
