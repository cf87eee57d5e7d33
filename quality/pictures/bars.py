"""Horizontal bars of shares that add up to one, in the manner of `plot`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from PIL import Image, ImageDraw, ImageFont

from ...engine.errors import InputError
from .plot import COLOURS, INK, PAPER, QUIET, SCALE

WIDTH, ROW, TOP, BOTTOM = 900, 26, 84, 48
LEFT, RIGHT = 330, 24
SMALLEST_LABEL = 0.04  # a narrower part has no number in it


@final
@dataclass(frozen=True)
class Bar:
    """A name and the shares of its parts, each at least 0, in the order of the legend."""

    name: str
    shares: Sequence[float]


def share_bars(bars: Sequence[Bar], parts: Sequence[str], *, title: str, note: str = "") -> Image.Image:
    """One row a bar, split into its parts; the legend above. Raises InputError when there are none."""
    if not bars:
        raise InputError("nothing to plot: no bars")
    height = TOP + ROW * len(bars) + BOTTOM
    image = Image.new("RGB", (WIDTH * SCALE, height * SCALE), PAPER)
    ink = ImageDraw.Draw(image)

    def text(x: float, y: float, words: str, size: int, colour: Any = INK, anchor: str = "la") -> None:
        ink.text((x * SCALE, y * SCALE), words, colour, ImageFont.load_default(size * SCALE), anchor)

    def box(x: float, y: float, width: float, tall: float, colour: Any) -> None:
        ink.rectangle([x * SCALE, y * SCALE, (x + width) * SCALE, (y + tall) * SCALE], colour)

    text(16, 14, title, 18)
    text(16, height - 26, note, 12, QUIET)
    for index, part in enumerate(parts):
        box(LEFT + 150 * index, TOP - 28, 11, 11, COLOURS[index])
        text(LEFT + 150 * index + 18, TOP - 22.5, part, 12, INK, "lm")
    for row, bar in enumerate(bars):
        x, y = float(LEFT), TOP + ROW * row
        text(LEFT - 10, y + ROW / 2, bar.name, 12, INK, "rm")
        for index, share in enumerate(bar.shares):
            width = max(share, 0.0) * (WIDTH - LEFT - RIGHT)
            box(x, y + 3, width, ROW - 6, COLOURS[index])
            if share >= SMALLEST_LABEL:
                text(x + width / 2, y + ROW / 2, f"{100 * share:.1f} %", 11, PAPER, "mm")
            x += width
    return image.resize((WIDTH, height), Image.Resampling.LANCZOS)
