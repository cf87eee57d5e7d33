"""`pfdiff bench --report`: every stored run on one page of Markdown, with plots beside it.

For each device: latency over the commits, what a sample's time consists of, the peers, starting, all figures of the
last run, and error against latency where `pareto` has measured it. Latencies of different runs are drawn, not compared:
only ratios are (see `regression`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine.errors import InputError
from ..quality.pictures.plot import Bar, Curve, log_plot, share_bars, write_plot
from .measuring.machine import RESULTS
from .regression import P99_ROUNDS, runs
from .studies.samplers.pareto import at_equal_latency, plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Run = Mapping[str, Any]
PARTS = ("network", "updates", "rest")
STARTS = ("test_command", "test_first_sample", "test_build")
NOTE = "b8: a batch of 8."


def write_report(out: Path, results: Path = RESULTS) -> Path:
    """The page at `out`, its plots in the folder of the same name. Raises InputError when there is nothing stored."""
    devices = [folder for folder in sorted(results.iterdir()) if folder.is_dir()] if results.is_dir() else []
    found = [(folder, runs(folder), sorted(folder.glob("pareto_*.json"))) for folder in devices]
    found = [one for one in found if one[1] or one[2]]
    if not found:
        raise InputError(f"no stored runs in '{results}'; measure some with make bench")
    plots = out.with_suffix("")
    lines = ["# Benchmarks", "", "Written by `pfdiff bench --report` from the JSON files named below."]
    try:
        plots.mkdir(parents=True, exist_ok=True)
        for folder, paths, fronts in found:
            lines += ["", f"## {folder.name}"]
            if paths:
                lines += _device(folder.name, [(path, json.loads(path.read_bytes())) for path in paths], plots)
            for path in fronts:
                lines += _front(folder.name, path, plots)
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--report: {error.filename}: {error.strerror}; choose a file with --out") from None
    return out


def _device(device: str, stored: Sequence[tuple[Path, Run]], plots: Path) -> Iterator[str]:
    """The sections of one device; the last run is the one whose figures are listed."""
    path, last = stored[-1]
    machine = last["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    yield f"\n{machine['gpu'] or machine['processor']}, {machine['cores']} cores, {machine['system']}; {versions}.\n"
    yield "| run | file | time | passes | seconds |\n|---|---|---|--:|--:|"
    for number, (one, run) in enumerate(stored, 1):
        yield f"| {number} | `{one.name}` | {run['machine']['time']} | {run['passes']} | {run['seconds']} |"
    yield from _shown(_latencies(stored), plots / f"{device}_latency.png", "Latency over the commits")
    yield from _shown(_shares(last), plots / f"{device}_shares.png", "What a sample's time consists of")
    yield from _peers(last)
    yield from _starts(last)
    yield f"\n### All figures of `{path.name}`\n"
    yield "Ratios are of times taken in turns, larger is worse; milliseconds of a whole batch."
    yield f"A p99 is that of {P99_ROUNDS} rounds or more.\n"
    yield "| benchmark | rounds | p50 | p90 | p99 | max | ratio | |\n|---|--:|--:|--:|--:|--:|---|---|"
    for name, row in last["benchmarks"].items():
        p99_ms = row["p99_ms"] if row["rounds"] >= P99_ROUNDS else None
        times = f"{row['rounds']} | " + _cells(row["p50_ms"], row["p90_ms"], p99_ms, row["max_ms"])
        ratios = [f"{kind} | {one['value']:.3f} ± {one['spread']:.3f}" for kind, one in row["ratios"].items()]
        yield f"| {_short(name)} | {times} | {ratios[0] if ratios else '| '} |"
        yield from (f"| | | | | | | {ratio} |" for ratio in ratios[1:])


def _latencies(stored: Sequence[tuple[Path, Run]]) -> Figure:
    """Milliseconds a sample of every whole-sample benchmark, over the runs, by number and commit."""
    curves: dict[str, list[tuple[float, float]]] = {}
    names: dict[float, str] = {}
    for number, (path, run) in enumerate(stored, 1):
        names[number] = f"{number}: {path.stem.split('_', 1)[1][:7]}"
        for name, row in _samples(run):
            curves.setdefault(name, []).append((number, row["per_sample_ms"]))
    found = [Curve(name, points) for name, points in curves.items()]
    return log_plot(
        found,
        title="A whole sample over the commits",
        x_label="run and commit",
        y_label="ms a sample, p50",
        note=NOTE,
        x_names=names,
    )


def _shares(run: Run) -> Figure:
    bars = [Bar(name, [row["shares"][part] for part in PARTS]) for name, row in _samples(run)]
    names = ("network", "updates", "rest: noise, Python, gaps")
    return share_bars(
        bars, names, title="What a whole sample's time consists of", note=f"Medians of times taken in turns. {NOTE}"
    )


def _peers(run: Run) -> Iterator[str]:
    """A table of foreign code beside ours."""
    found = [row for row in run["benchmarks"].values() if row["peer"]]
    if not found:
        return
    yield "\n### The same sample drawn by others\n"
    threads = "one thread" if found[0]["threads"] == 1 else f"{found[0]['threads']} threads"
    yield f"Same network, noise, times and solver, batch 1, {threads}; outputs differ by that of the largest element.\n"
    yield "| network | solver | NFE | peer | its ms | pfdiff ms | on | pfdiff is faster by | outputs differ by |"
    yield "|---|---|--:|---|--:|--:|---|--:|--:|"
    for row in found:
        [ratio] = row["ratios"].values()
        faster = f"{1 / ratio['value']:.2f} ± {ratio['spread'] / ratio['value'] ** 2:.2f}"
        times = f"{row['p50_ms']:.4g} | {row['ours']['p50_ms']:.4g} | {row['ours']['backend']}"
        peer = f"{row['engine']} | {row['solver']} | {row['nfe']} | {row['peer']}"
        yield f"| {peer} | {times} | {faster} | {row['error']:.0e} |"


def _starts(run: Run) -> Iterator[str]:
    """Commands, first samples and builds: their times, what of them is loading, and what they may take."""
    found = [(name, row) for name, row in run["benchmarks"].items() if name.startswith(STARTS)]
    if not found:
        return
    yield "\n### Starting\n"
    yield "Milliseconds; a first sample from its engine's directory on; a command's budget is for what Python is not.\n"
    yield "| benchmark | p50 | max | of which loading | beyond Python's start | budget |\n|---|--:|--:|--:|--:|--:|"
    for name, row in found:
        kinds = ("p50_ms", "max_ms", "load_ms", "added_ms", "budget_ms")
        yield f"| {_short(name)} | {_cells(*(row.get(kind) for kind in kinds))} |"


def _cells(*times_ms: float | None) -> str:
    """Milliseconds side by side, nothing where there are none."""
    return " | ".join("" if one is None else f"{one:.4g}" for one in times_ms)


def _front(device: str, path: Path, plots: Path) -> Iterator[str]:
    """Error against latency, and in DDIM's time how many times less error there is to have."""
    name, points = path.stem.removeprefix("pareto_"), json.loads(path.read_bytes())["points"]
    yield from _shown(plot(name, points), plots / f"{device}_{path.stem}.png", f"Error against latency: {name}")
    yield f"\n`{path.name}`\n"
    yield from at_equal_latency(points)


def _shown(figure: Figure, path: Path, title: str) -> Iterator[str]:
    write_plot(path, figure)
    yield f"\n### {title}\n"
    yield f"![{title}]({os.path.join(path.parent.name, path.name)})"


def _samples(run: Run) -> list[tuple[str, Mapping[str, Any]]]:
    """Every whole-sample benchmark, with a name that is short enough for a plot."""
    found = [row for row in run["benchmarks"].values() if "shares" in row]
    words = ("engine", "precision", "backend", "nfe")
    return [(" ".join(str(row[word]) for word in words) + f" NFE b{row['batch']}", row) for row in found]


def _short(name: str) -> str:
    """test_sample[fashion-fp32] -> sample fashion-fp32"""
    return name.removeprefix("test_").replace("[", " ").rstrip("]")
