"""Plots are read back from the figure: lines, ticks, legend; files are the same bytes each time."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfdiff import InputError
from pfdiff.quality.pictures.plot import MARKERS, Bar, Curve, log_plot, share_bars, write_plot

WORDS: dict[str, Any] = {"title": "title", "x_label": "x", "y_label": "y"}


def ticks(axis: Any) -> list[str]:
    """The labels that stand on the page, in their order."""
    axis.figure.draw_without_rendering()
    low, high = axis.get_view_interval()
    return [one.get_text() for one in axis.get_ticklabels() if low <= one.get_position()[axis.axis_name == "y"] <= high]


def test_many_curves_are_lines_that_can_be_told_apart() -> None:
    curves = [Curve(f"solver {i}", [(4, 0.3 / (i + 1)), (8, 0.1 / (i + 1)), (6, 0.2)]) for i in range(16)]
    figure = log_plot(curves, **WORDS)
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    assert [np.asarray(line.get_xydata()).tolist() for line in axes.lines] == [
        sorted(map(list, one.points)) for one in curves
    ]
    assert len({(line.get_color(), str(line.get_marker())) for line in axes.lines}) == 16
    assert sorted({str(line.get_marker()) for line in axes.lines}) == sorted(MARKERS)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [f"solver {i}" for i in range(16)]  # the largest last error first
    log_plot([Curve("one", [(8, 0.1)])], title="", x_label="", y_label="")
    with pytest.raises(InputError, match="nothing to plot"):
        log_plot([Curve("none", [(8, 0.0)])], title="", x_label="", y_label="")


@pytest.mark.parametrize(
    ("lowest", "least"),
    [(0.06, 3), (0.02, 3), (1e-6, 3)],
    ids=["less than a decade", "a decade and a half", "six decades"],
)
def test_an_axis_has_several_plain_labels(lowest: float, least: int) -> None:
    figure = log_plot([Curve("one", [(4, 0.5), (8, lowest)])], **WORDS)
    shown = [text for text in ticks(figure.axes[0].yaxis) if text]
    assert len(shown) >= least
    assert all(lowest / 2 <= float(text) <= 1 for text in shown)
    assert sorted(ticks(figure.axes[0].xaxis)) == ["4", "8"]


def test_the_plot_fills_its_page() -> None:
    """The axes and the legend share the width: no empty stretch of a tenth between or beside them."""
    figure = log_plot([Curve("ddim@logsnr", [(4, 0.5), (8, 0.1)])], **WORDS)
    figure.draw_without_rendering()
    axes, legend = figure.axes[0].get_window_extent(), figure.legends[0].get_window_extent()
    assert axes.x0 < 0.1 * figure.bbox.width
    assert legend.x1 > 0.97 * figure.bbox.width
    assert 0 < legend.x0 - axes.x1 < 0.05 * figure.bbox.width


@pytest.mark.parametrize(("count", "shown"), [(3, 3), (11, 6), (100, 6)])
def test_ticks_with_names_do_not_touch(count: int, shown: int) -> None:
    names = {float(n): f"{n}: abcdef0" for n in range(1, count + 1)}
    figure = log_plot([Curve("one", [(n, 0.1) for n in names])], **WORDS, x_names=names)
    figure.draw_without_rendering()
    labels = figure.axes[0].get_xticklabels()
    boxes = sorted((one.get_window_extent().x0, one.get_window_extent().x1) for one in labels)
    assert len(boxes) == shown
    assert labels[0].get_text() == f"{count}: abcdef0"  # the newest run always has its name
    assert all(one[1] + 2 < other[0] for one, other in itertools.pairwise(boxes))


def test_bars_are_as_long_as_their_shares() -> None:
    figure = share_bars([Bar("one", [0.7, 0.28, 0.02]), Bar("two", [0.5, 0.0, 0.5])], ["a", "b", "c"], title="")
    (axes,) = figure.axes
    found = [[(bar.get_x(), bar.get_width()) for bar in part] for part in axes.containers]  # type: ignore[union-attr]
    assert found[0] == [(0, 0.7), (0, 0.5)]
    assert found[1] == [(0.7, 0.28), (0.5, 0.0)]
    assert [start for start, _ in found[2]] == pytest.approx([0.98, 0.5])
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["70.0 %", "50.0 %", "28.0 %", "50.0 %"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["one", "two"]
    with pytest.raises(InputError, match="no bars"):
        share_bars([], ["a"], title="")


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_plot_is_written_in_three_formats_and_the_same_each_time(tmp_path: Path, kind: str) -> None:
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for name in ("one", "two"):
        write_plot(tmp_path / f"{name}.{kind}", log_plot([Curve("one", [(4, 0.1), (8, 0.02)])], **WORDS))
    data = (tmp_path / f"one.{kind}").read_bytes()
    assert data.startswith(begins[kind])
    assert data == (tmp_path / f"two.{kind}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"one.{kind}", f"two.{kind}"]


def test_without_matplotlib_one_line_says_what_to_install() -> None:
    code = """import sys
sys.modules["matplotlib"] = None
from pfdiff.cli import main
status = main(["compare", "fashion", "--nfe", "4", "-o", "plot.png"])
sys.exit(9 if "torch" in sys.modules else status)"""  # before anything is loaded""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "pfdiff: plots need matplotlib; install it with pip install 'pfdiff[plots]'\n"
