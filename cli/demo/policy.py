"""`pfdiff demo policy`: the shipped policy drives a disc through gates; success and time by sampler and evaluations.

Success is the share of episodes that reach the goal; time is that of one chunk of 8 actions, sampled alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...engine.errors import InputError

if TYPE_CHECKING:
    from ...export.zoo.gates_rollout import Outcome

EPISODES, DRAWN = 64, 24
SEED = 7_000  # of episodes that neither training nor tuning has seen
SECONDS = 0.3  # of timing, for each row and NFE
PANELS = (("DDIM", 1), ("DDIM", 4), ("PFDiff", 4), ("tuned", 4))


@dataclass(frozen=True)
class Line:
    """One sampler at one NFE: success in [0, 1], and the median of a chunk in ms."""

    sampler: str
    program: str
    nfe: int
    success: float
    ms: float


@dataclass(frozen=True)
class Report:
    """What the demonstration found. expert: its success on the same tasks. description: who runs the network."""

    engine: Path
    picture: Path
    description: str
    episodes: int
    expert: float
    lines: tuple[Line, ...]


def run(picture: Path, progress: Callable[[str], None]) -> Report:
    """Build gates.engine beside `picture`, drive, time, and write the animation. Raises InputError."""
    if picture.suffix != ".gif":
        raise InputError(f"output {picture}: expected a file that ends in .gif")
    from ...engine.api import Engine
    from ...engine.artifact import read_artifact
    from ...export.build import check_place
    from ...export.engine_directory import write_programs
    from ...export.network import Network
    from ...export.zoo.gates_expert import demonstrate
    from ...export.zoo.gates_rollout import rollout
    from ...export.zoo.gates_samplers import NAMES, programs_of

    if picture.is_dir() or not picture.parent.is_dir():
        what = "is a folder" if picture.is_dir() else f"'{picture.parent}' is no folder"
        raise InputError(f"output {picture}: {what}; choose a file in a folder that is there")
    path = check_place(picture.with_name("gates.engine"))
    progress("reading the shipped policy")
    network = Network("gates")
    tables = {name: programs_of(network.contract, name) for name in NAMES}
    held = {"precision": "fp32", "batch": (1, 8, 64), "replaces": True}
    write_programs(path.resolve(), network, tables["tuned"], **held, say=progress)
    expert = float(demonstrate(EPISODES, SEED, pushed=False).success.mean())
    lines: list[Line] = []
    panels: dict[tuple[str, int], Outcome] = {}
    with Engine.open(read_artifact(path)) as engine:
        for name, programs in tables.items():
            face = engine.with_programs(programs)
            for nfe in programs:
                progress(f"{name}, {nfe} evaluation{'s' * (nfe > 1)}: {EPISODES} episodes")
                rate = rollout(face, nfe, EPISODES, SEED).rate
                ms = face.bench(nfe, 1, seconds=SECONDS).p50_ms
                lines.append(Line(name, programs[nfe].solver, nfe, rate, ms))
                if (name, nfe) in PANELS:
                    panels[name, nfe] = rollout(face, nfe, DRAWN, SEED + 1, alike=True)
        description = engine.description
    progress("drawing")
    _draw(picture, panels, lines)
    return Report(path, picture, description, EPISODES, expert, tuple(lines))


def _draw(picture: Path, panels: dict[tuple[str, int], Outcome], lines: list[Line]) -> None:
    from ...export.zoo.gates_drawing import write_animation

    rates = {(one.sampler, one.nfe): one.success for one in lines}
    captions = {
        pair: f"{pair[0]}, {pair[1]} evaluation{'s' * (pair[1] > 1)}\n{rates[pair]:.0%} of {EPISODES} episodes"
        for pair in panels
    }
    try:
        write_animation(picture, [(captions[pair], panels[pair]) for pair in PANELS])
    except OSError as error:
        raise InputError(f"output {picture}: {error.strerror}; choose a file that can be written") from None


def print_demo(report: Report) -> None:
    """Success and time, a row for each sampler."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console.print(f"gates, {report.episodes} episodes; the expert reaches the goal in {report.expert:.1%}")
    console.print(report.description)
    for title, text in (
        ("success", lambda one: f"{one.success:.1%}"),
        ("ms a chunk", lambda one: f"{one.ms:.2f}"),
    ):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(title)
        for nfe in dict.fromkeys(one.nfe for one in report.lines):
            table.add_column(f"{nfe}", justify="right")
        for name in dict.fromkeys(one.sampler for one in report.lines):
            table.add_row(name, *(text(one) for one in report.lines if one.sampler == name))
        console.print(table)
    print(f"wrote {report.picture} and {report.engine}")
