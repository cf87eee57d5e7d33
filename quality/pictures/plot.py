"""Plots by matplotlib: curves on a logarithmic axis, and bars of shares. Both give a `matplotlib.figure.Figure`.

Figures are made without pyplot, so that nothing global is touched and any thread may draw.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from ...engine.errors import InputError
from .write import check_folder, replaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT, ROW = 9.0, 5.6, 0.26  # inches; ROW of one bar
DPI = 100
FORMATS = (".png", ".svg", ".pdf")
INK, QUIET, LINE, PAPER = "#18181b", "#71717a", "#e4e4e7", "#ffffff"
# Okabe and Ito's colours, which colour-blind readers can tell apart; after seven curves the marker changes.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#3c3c3c")
MARKERS = ("o", "s", "D")
MOST_TICKS, MOST_NAMES = 16, 6  # of a linear x axis: numbers, names
SMALLEST_LABEL = 0.04  # a narrower part of a bar has no number in it


@final
@dataclass(frozen=True)
class Curve:
    """A name and its points (x, y), y above 0."""

    name: str
    points: Sequence[tuple[float, float]]


@final
@dataclass(frozen=True)
class Bar:
    """A name and the shares of its parts, each at least 0, in the order of the legend."""

    name: str
    shares: Sequence[float]


def log_plot(
    curves: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    note: str = "",
    log_x: bool = False,
    x_names: Mapping[float, str] | None = None,
) -> Figure:
    """The curves with a logarithmic y axis; the legend is in the order of the last points.

    x is linear with a tick at every x, or with `log_x` logarithmic. x_names: texts in place of the numbers at ticks.
    Raises InputError when no point has a y above 0, or matplotlib is not installed.
    """
    drawn = [Curve(one.name, sorted((x, y) for x, y in one.points if y > 0 and math.isfinite(y))) for one in curves]
    drawn = [one for one in drawn if one.points]
    if not drawn:
        raise InputError("nothing to plot: no sampler has an error above 0")
    figure = _figure(HEIGHT, title, note)
    axes = figure.add_subplot()
    axes.set_yscale("log")
    for index, one in enumerate(drawn):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index // len(COLOURS) % len(MARKERS)]
        xs, ys = zip(*one.points, strict=True)
        axes.plot(xs, ys, color=colour, marker=marker, markersize=5, linewidth=1.6, label=one.name)
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    if log_x:
        axes.set_xscale("log")
        _log_ticks(axes.xaxis)
    else:
        _linear_ticks(axes, sorted({x for one in drawn for x, _ in one.points}), x_names or {})
    _log_ticks(axes.yaxis)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="both", axis="y", color=LINE, linewidth=0.6)
    handles, names = axes.get_legend_handles_labels()
    order = sorted(range(len(drawn)), key=lambda index: -drawn[index].points[-1][1])
    figure.legend(
        [handles[index] for index in order],
        [names[index] for index in order],
        loc="outside right upper",
        frameon=False,
        fontsize=9,
    )
    return figure


def share_bars(bars: Sequence[Bar], parts: Sequence[str], *, title: str, note: str = "") -> Figure:
    """One row a bar, split into its parts, with the share in per cent in each. Raises InputError without bars."""
    if not bars:
        raise InputError("nothing to plot: no bars")
    figure = _figure(1.5 + ROW * len(bars), title, note)
    axes = figure.add_subplot()
    for index, part in enumerate(parts):
        widths = [max(bar.shares[index], 0.0) for bar in bars]
        lefts = [sum(max(share, 0.0) for share in bar.shares[:index]) for bar in bars]
        drawn = axes.barh(range(len(bars)), widths, 0.8, lefts, color=COLOURS[index], label=part)
        labels = [f"{100 * width:.1f} %" if width >= SMALLEST_LABEL else "" for width in widths]
        axes.bar_label(drawn, labels, label_type="center", color=PAPER, fontsize=8)
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars], fontsize=9)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.legend(loc="outside upper right", ncols=len(parts), frameon=False, fontsize=9)
    return figure


def write_plot(path: str | os.PathLike[str], figure: Figure) -> None:
    """Write a figure as .png, .svg or .pdf, whole or not at all, the same bytes each time. Raises InputError."""
    import matplotlib

    target = check_plot(path)
    kind = target.suffix.lower().removeprefix(".")
    metadata: dict[str, Any] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    with replaced(target) as partial, matplotlib.rc_context({"svg.hashsalt": "pfdiff"}):
        figure.savefig(partial, format=kind, metadata=metadata)


def check_plot(path: str | os.PathLike[str]) -> Path:
    """Where a plot is to be written, checked before any work.

    Raises InputError on another ending than .png, .svg, .pdf, on a folder that is missing or cannot be written, and
    without matplotlib.
    """
    target = Path(path)
    if target.suffix.lower() not in FORMATS:
        raise InputError(f"output {target} ends in '{target.suffix}'; expected a plot that ends in .png, .svg or .pdf")
    check_folder(target)
    _matplotlib()
    return target


def _matplotlib() -> Any:
    """matplotlib, imported where it is used. Raises InputError when it is not installed."""
    try:
        from matplotlib import figure
    except ImportError:
        raise InputError("plots need matplotlib; install it with pip install 'pfdiff[plots]'") from None
    return figure


def _figure(height: float, title: str, note: str) -> Figure:
    figure: Figure = _matplotlib().Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor=PAPER)
    figure.suptitle(title, x=0.012, ha="left", color=INK, fontsize=13)
    figure.supxlabel(note, x=0.012, ha="left", color=QUIET, fontsize=8.5)
    return figure


def _log_ticks(axis: Any) -> None:
    """Labels such as 0.02 at 1, 2 and 5 of each decade; at more digits where the axis is less than a decade long."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    span = math.log10(high / low)
    digits = (1, 2, 3, 4, 5, 6, 7, 8, 9) if span < 1 else (1, 2, 5) if span < 2.5 else (1,)
    axis.set_major_locator(LogLocator(subs=digits, numticks=50))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _linear_ticks(axes: Axes, xs: list[float], names: Mapping[float, str]) -> None:
    """A tick at every x; of many, every second, third, ... counted from the last."""
    step = -(-len(xs) // (MOST_NAMES if names else MOST_TICKS))
    shown = xs[::-1][::step]
    axes.set_xticks(shown, [names.get(x, f"{x:g}") for x in shown])
