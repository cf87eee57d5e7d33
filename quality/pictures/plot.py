"""A plot with a logarithmic error axis, drawn with Pillow at three times its size and reduced."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from PIL import Image, ImageDraw, ImageFont

from ...engine.errors import InputError

SCALE = 3
WIDTH, HEIGHT = 900, 560
LEFT, RIGHT, TOP, BOTTOM = 76, 250, 84, 92
PAPER, INK, QUIET, LINE = (255, 255, 255), (24, 24, 27), (113, 113, 122), (228, 228, 231)
# Okabe and Ito's colours, told apart by colour-blind readers; then dashes by marker.
COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0), (60, 60, 60))
MARKERS = ("circle", "square", "diamond")


@final
@dataclass(frozen=True)
class Curve:
    """A name and its points (x, y), y above 0."""

    name: str
    points: Sequence[tuple[float, float]]


def log_plot(
    curves: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    note: str = "",
    log_x: bool = False,
    x_names: Mapping[float, str] | None = None,
) -> Image.Image:
    """The curves, y logarithmic, names at the right in the order of their last points. x is linear with a tick at
    every x, or with `log_x` logarithmic and above 0. x_names: what stands at a tick in place of its number.
    Raises InputError when there is no point with a y above 0."""
    drawn = [Curve(one.name, sorted((x, y) for x, y in one.points if y > 0 and math.isfinite(y))) for one in curves]
    drawn = [one for one in drawn if one.points]
    if not drawn:
        raise InputError("nothing to plot: no sampler has an error above 0")
    return _Page(drawn, log_x, x_names or {}).draw(title, x_label, y_label, note)


@final
class _Page:
    def __init__(self, curves: Sequence[Curve], log_x: bool, x_names: Mapping[float, str]) -> None:
        self.curves = curves
        self.log_x = log_x
        self.x_names = x_names
        self.image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), PAPER)
        self.ink = ImageDraw.Draw(self.image)
        xs = sorted({x for one in curves for x, _ in one.points})
        ys = [y for one in curves for _, y in one.points]
        if log_x:
            self.x_range = math.log10(min(xs)) - 0.06, math.log10(max(xs)) + 0.06
            self.x_ticks = _log_ticks(*self.x_range)
        else:
            pad = 0.5 if xs[0] == xs[-1] else 0.03 * (xs[-1] - xs[0])
            self.x_range = xs[0] - pad, xs[-1] + pad
            self.x_ticks = xs
        self.y_range = math.log10(min(ys)) - 0.06, math.log10(max(ys)) + 0.06

    def x(self, value: float) -> float:
        low, high = self.x_range
        place = math.log10(value) if self.log_x else value
        return LEFT + (place - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - BOTTOM - (math.log10(value) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def draw(self, title: str, x_label: str, y_label: str, note: str) -> Image.Image:
        self._axes(x_label, y_label)
        self._text((16, 14), title, 18)
        self._text((16, HEIGHT - 26), note, 12, QUIET)
        for index, curve in enumerate(self.curves):
            self._curve(curve, index)
        self._names()
        return self.image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)

    def _axes(self, x_label: str, y_label: str) -> None:
        for value in _log_ticks(*self.y_range):
            self._line([(LEFT, self.y(value)), (WIDTH - RIGHT, self.y(value))], LINE, 1)
            self._text((LEFT - 8, self.y(value)), f"{value:g}", 12, QUIET, "rm")
        free = math.inf  # left of what is written: from the last tick on, those whose names would touch have none
        for value in reversed(self.x_ticks):
            self._line([(self.x(value), HEIGHT - BOTTOM), (self.x(value), HEIGHT - BOTTOM + 5)], QUIET, 1)
            name = self.x_names.get(value, f"{value:g}")
            half = ImageFont.load_default(12 * SCALE).getlength(name) / SCALE / 2
            if self.x(value) + half < free:
                self._text((self.x(value), HEIGHT - BOTTOM + 8), name, 12, QUIET, "mt")
                free = self.x(value) - half - 6
        self._line([(LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM)], QUIET, 1)
        self._text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + 30), x_label, 13, INK, "mt")
        self._text((LEFT - 8, TOP - 16), y_label, 13, INK, "lb")

    def _curve(self, curve: Curve, index: int) -> None:
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index // len(COLOURS) % len(MARKERS)]
        places = [(self.x(x), self.y(y)) for x, y in curve.points]
        self._line(places, colour, 2)
        for x, y in places:
            self._marker(x, y, colour, marker)

    def _marker(self, x: float, y: float, colour: Any, marker: str) -> None:
        r = 4.5
        if marker == "diamond":
            corners = [(x, y - r - 1), (x + r + 1, y), (x, y + r + 1), (x - r - 1, y)]
            self.ink.polygon([(a * SCALE, b * SCALE) for a, b in corners], fill=colour)
            return
        box = [value * SCALE for value in (x - r, y - r, x + r, y + r)]
        (self.ink.ellipse if marker == "circle" else self.ink.rectangle)(box, fill=colour)

    def _names(self) -> None:
        """Names beside the last points, moved apart where they would touch."""
        order = sorted(range(len(self.curves)), key=lambda index: self.y(self.curves[index].points[-1][1]))
        height, at = 18, TOP - 6.0
        places: list[float] = []
        for index in order:
            at = max(at + height, self.y(self.curves[index].points[-1][1]))
            places.append(at)
        below = places[-1] - (HEIGHT - BOTTOM) if places else 0
        for back in range(len(places) - 1, -1, -1):  # and back up when the last one is below the axis
            limit = HEIGHT - BOTTOM if back == len(places) - 1 else places[back + 1] - height
            places[back] = min(places[back], limit) if below > 0 else places[back]
        for index, y in zip(order, places, strict=True):
            curve, colour = self.curves[index], COLOURS[index % len(COLOURS)]
            last = self.x(curve.points[-1][0]), self.y(curve.points[-1][1])
            edge = WIDTH - RIGHT + 14
            self._line([(last[0] + 6, last[1]), (edge - 4, y)], LINE, 1)
            self._marker(edge + 5, y, colour, MARKERS[index // len(COLOURS) % len(MARKERS)])
            self._text((edge + 16, y), curve.name, 12, INK, "lm")

    def _line(self, places: Sequence[tuple[float, float]], colour: Any, width: int) -> None:
        self.ink.line([(x * SCALE, y * SCALE) for x, y in places], fill=colour, width=width * SCALE, joint="curve")

    def _text(self, place: tuple[float, float], text: str, size: int, colour: Any = INK, anchor: str = "la") -> None:
        font = ImageFont.load_default(size * SCALE)
        self.ink.text((place[0] * SCALE, place[1] * SCALE), text, fill=colour, font=font, anchor=anchor)


def _log_ticks(low: float, high: float) -> list[float]:
    """Round values between 10^low and 10^high: every digit, 1 2 5 or powers alone, by how far apart these are."""
    span = high - low
    steps = (1, 2, 3, 4, 5, 6, 7, 8, 9) if span < 0.7 else (1, 2, 5) if span < 2.5 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    return [value for value in ticks if low <= math.log10(value) <= high]
