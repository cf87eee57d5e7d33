"""kernels/images.py: the interpreted kernel and its twin, bit for bit and against float64."""

from __future__ import annotations

import pytest
import torch

from pfdiff.kernels import eager
from pfdiff.kernels.images import BLOCK, images

pytest.importorskip("triton", reason="the kernels need Triton")

SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (3, 1, 28, 28),
    (1, 4, 1, 997),
    (1, 1, 1, BLOCK - 1),
    (2, 1, 1, BLOCK + 1),
    (1, 3, 16, 256),
]


@pytest.fixture(params=["interpreter", "twin"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TRITON_INTERPRET", "1" if request.param == "interpreter" else "0")
    return request.param


def pictures(op, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    samples, channels, height, width = x.shape
    pixels = torch.full((samples, height, width, channels), 99, dtype=torch.uint8)
    op(pixels, x, low, high)
    return pixels


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("data_range", [(-1.0, 1.0), (0, 1), (-3.5, 0.25)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pixels_equal_the_twin_and_the_nearest_level(shape: tuple[int, ...], data_range: tuple[float, float]) -> None:
    low, high = data_range
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))
    x = low + (high - low) * (1.2 * uniform - 0.1)  # a tenth beyond either end
    found = pictures(images, x, low, high)
    assert torch.equal(found, pictures(eager.images, x, low, high))
    level = ((x.double() - low) * 255 / (high - low)).clamp(0, 255).permute(0, 2, 3, 1)
    assert (found.double() - level).abs().max() <= 0.5 + 255 * 4 * torch.finfo(torch.float32).eps


@pytest.mark.usefixtures("way")
def test_halves_round_to_even_and_the_range_is_clamped() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, 253.5, 254.5, -7.0, 300.0, 0.0, 255.0, torch.nan, torch.inf, -torch.inf])
    assert pictures(images, x.view(1, 1, 1, -1), 0.0, 255.0).flatten().tolist() == [
        *(0, 2, 2, 254, 254),
        *(0, 255, 0, 255),
        *(0, 255, 0),
    ]


@pytest.mark.usefixtures("way")
def test_channels_become_the_last_axis() -> None:
    x = torch.arange(2 * 3 * 5 * 7, dtype=torch.float32).view(2, 3, 5, 7)
    assert torch.equal(pictures(images, x, 0.0, 255.0), x.permute(0, 2, 3, 1).to(torch.uint8))


def test_twin_works_in_float64() -> None:
    x = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    assert torch.equal(pictures(eager.images, x, 0, 1), (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("pixels", "x", "high", "message"),
    [
        (torch.zeros(1, 2, 2, 3, dtype=torch.uint8), torch.zeros(1, 3, 4), 1.0, r"\[b, C, H, W\]"),
        (torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.zeros(1, 3, 2, 2), 1.0, r"uint8 \(1, 2, 2, 3\)"),
        (torch.zeros(1, 2, 2, 3), torch.zeros(1, 3, 2, 2), 1.0, "must be contiguous uint8"),
        (torch.zeros(1, 2, 2, 3, dtype=torch.uint8), torch.zeros(1, 3, 2, 2), -1.0, "must rise"),
        (torch.zeros(1, 2, 2, 3, dtype=torch.uint8), torch.zeros(1, 3, 2, 2, device="meta"), 1.0, "one device"),
    ],
)
def test_what_does_not_fit_is_refused(pixels: torch.Tensor, x: torch.Tensor, high: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        images(pixels, x, -1.0, high)


def test_no_pictures_are_fine() -> None:
    assert pictures(images, torch.zeros(0, 3, 4, 4), -1.0, 1.0).shape == (0, 4, 4, 3)
