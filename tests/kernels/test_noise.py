"""kernels/noise.py: Philox known answers, the kernel against float64, statistics, and one seed one image."""

from __future__ import annotations

import math

import pytest
import torch

from pfdiff.kernels import eager
from pfdiff.kernels.noise import BLOCK, noise, seed_tensor

from ..comparator import assert_as_good_as_plain

pytest.importorskip("triton", reason="the kernels need Triton")

SEEDS = [0, 1, 2**32, 2**63, 2**64 - 1, 0x299F31D0A4093822]


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def interpreted_noise(seeds: list[int], *shape: int) -> torch.Tensor:
    z = torch.full((len(seeds), *shape), torch.nan)
    noise(z, seed_tensor(seeds))
    return z


def exact_noise(seeds: list[int], *shape: int) -> torch.Tensor:
    z = torch.empty(len(seeds), *shape, dtype=torch.float64)
    eager.noise(z, seed_tensor(seeds))
    return z


def float32_noise(seeds: list[int], size: int) -> torch.Tensor:
    """Box-Muller as plain float32 code: u_1 and the angle rounded before the logarithm and the cosine."""
    rows = []
    for seed in seeds:
        r_0, r_1 = words(seed, size)
        u_1, u_2 = (((r + 0.5) * 2.0**-32).float() for r in (r_0, r_1))
        rows.append(torch.sqrt(-2 * torch.log(u_1)) * torch.cos(2 * math.pi * u_2))
    return torch.stack(rows)


def words(seed: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    element = torch.arange(size)
    zero = torch.zeros_like(element)
    r_0, r_1, _, _ = eager.philox(
        (element, zero, zero, zero), (torch.tensor(seed & 0xFFFFFFFF), torch.tensor(seed >> 32))
    )
    return r_0.double(), r_1.double()


# Known answers of Random123 1.14 (kat_vectors, philox4x32 10): counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN, ids=["zeros", "ones", "pi"])
def test_philox_known_answers(counter: str, key: str, result: str) -> None:
    counter_words = tuple(torch.tensor([int(word, 16)]) for word in counter.split())
    k_0, k_1 = (torch.tensor(int(word, 16)) for word in key.split())
    found = eager.philox(counter_words, (k_0, k_1))
    assert " ".join(f"{int(word):08x}" for word in found) == result


def test_first_normals_of_seed_zero_follow_from_the_known_answer() -> None:
    u_1, u_2 = (0x6627E8D5 + 0.5) / 2**32, (0xE169C58D + 0.5) / 2**32
    expected = math.sqrt(-2 * math.log(u_1)) * math.cos(2 * math.pi * u_2)
    z = torch.empty(1, 3)
    eager.noise(z, seed_tensor([0]))
    assert z[0, 0].item() == torch.tensor(expected, dtype=torch.float64).float().item()


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("size", [1, 997, BLOCK - 1, BLOCK, BLOCK + 1])
def test_kernel_matches_float64(size: int) -> None:
    actual, exact = interpreted_noise(SEEDS, size), exact_noise(SEEDS, size)
    assert_as_good_as_plain(actual=actual, plain=float32_noise(SEEDS, size), exact=exact)


@pytest.mark.usefixtures("interpreter")
def test_kernel_is_within_four_units_of_the_exact_normal() -> None:
    actual, exact = interpreted_noise([5, 6], 20_000).double(), exact_noise([5, 6], 20_000)
    assert ((actual - exact).abs() <= 4 * torch.finfo(torch.float32).eps * exact.abs()).all()


@pytest.mark.usefixtures("interpreter")
def test_a_seed_means_one_sample_whatever_the_batch_and_shape() -> None:
    alone, together = interpreted_noise([7], 3, 5, 41), interpreted_noise([0, 7, 7, 2**64 - 1], 3, 5, 41)
    assert torch.equal(alone[0], together[1])
    assert torch.equal(alone[0], together[2])
    assert torch.equal(alone.flatten(), interpreted_noise([7], 3 * 5 * 41)[0])


@pytest.mark.parametrize("op", [eager.noise, noise], ids=["twin", "launcher"])
def test_without_gpu_the_result_is_float64_rounded_once(op, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    z = torch.empty(len(SEEDS), 3, 5, 7)
    op(z, seed_tensor(SEEDS))
    assert torch.equal(z, exact_noise(SEEDS, 3, 5, 7).float())


def test_the_normals_are_normal_and_independent() -> None:
    count = 1 << 20
    z = exact_noise([11, 12], count)
    moments = [z[0].pow(k).mean().item() for k in (1, 2, 3, 4)]
    deviations = [1.0, math.sqrt(2), math.sqrt(15), math.sqrt(96)]  # of z^k for a standard normal
    for found, expected, deviation in zip(moments, [0.0, 1.0, 0.0, 3.0], deviations, strict=True):
        assert abs(found - expected) < 5 * deviation / math.sqrt(count)
    for left, right in ((z[0], z[1]), (z[0, 1:], z[0, :-1]), (z[0, 64:], z[0, :-64])):
        assert abs((left * right).mean().item()) < 5 / math.sqrt(len(left))
    ordered = z[0].sort().values
    distance = (torch.special.ndtr(ordered) - (torch.arange(count) + 0.5) / count).abs().max().item()
    assert distance < 1.95 / math.sqrt(count)  # Kolmogorov-Smirnov, one in a thousand


def test_seeds_out_of_range_are_refused() -> None:
    assert seed_tensor([2**63, 2**64 - 1]).tolist() == [-(2**63), -1]
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=r"outside 0 \.\. 2\^64 - 1"):
            seed_tensor([seed])


@pytest.mark.parametrize(
    ("z", "seeds", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), "contiguous float32"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), r"int64 \[2\]"),
        (torch.zeros(2, 3), torch.zeros(2), r"int64 \[2\]"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64, device="meta"), "one device"),
    ],
)
def test_what_does_not_fit_is_refused(z: torch.Tensor, seeds: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        noise(z, seeds)


def test_no_samples_and_no_elements_are_fine() -> None:
    noise(torch.empty(0, 3), seed_tensor([]))
    noise(torch.empty(2, 0), seed_tensor([1, 2]))
