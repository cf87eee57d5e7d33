"""All progress bars. They stand on stderr, and only if that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, final

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    track,
)
from rich.spinner import Spinner
from rich.text import Text

if TYPE_CHECKING:
    from ...engine.api import Engine

Item = TypeVar("Item")


@final
class Stages:
    """Called with a line at each stage, shows it beside a spinner; `last` is the latest line.

    `step` shows the phases of a TensorRT build as bars below it, each until it is done.
    """

    def __init__(self, spinner: Spinner | None = None, phases: Progress | None = None) -> None:
        self._spinner = spinner
        self._phases = phases
        self._tasks: dict[str, TaskID] = {}
        self.last = ""

    def __call__(self, stage: str) -> None:
        self.last = stage
        if self._spinner:
            self._spinner.update(text=escape(stage))

    def step(self, phase: str, done: int, total: int) -> None:
        """`done` of `total` steps of a phase; phases may be nested."""
        if self._phases is None:
            return
        if phase not in self._tasks:
            self._tasks[phase] = self._phases.add_task(escape(phase), total=total)
        self._phases.update(self._tasks[phase], completed=done, total=total)
        if done >= total:
            self._phases.remove_task(self._tasks.pop(phase))


@contextmanager
def stages() -> Iterator[Stages]:
    """The bars of `build`: a `Stages` whose spinner and bars are gone when the block ends."""
    if not sys.stderr.isatty():
        yield Stages()
        return
    spinner = Spinner("dots", text="")
    phases = Progress(BarColumn(24), TextColumn("{task.completed}/{task.total} {task.description}"))
    with Live(Group(spinner, phases), console=Console(stderr=True), transient=True, refresh_per_second=12):
        yield Stages(spinner, phases)


def opened(path: Path, device: str, backend: str = "auto", threads: int | None = None) -> Engine:
    """The loaded engine; on a GPU the first time builds a TensorRT plan, which is shown."""
    from ... import load

    with stages() as progress:
        progress(f"loading {path}")
        return load(path, device, backend, threads=threads, progress=progress.step)


def bar(items: Sequence[Item], title: str) -> Iterator[Item]:
    """The items, with a progress bar if there are several."""
    if len(items) < 2 or not sys.stderr.isatty():
        return iter(items)
    return iter(track(items, description=title, console=Console(stderr=True), transient=True))


@contextmanager
def meter() -> Iterator[Callable[[str, int, int], None]]:
    """The bar of `tune` and `compare`: called with a stage, what is done and what is expected, 0 if that is unknown."""
    if not sys.stderr.isatty():
        yield lambda stage, done, expected: None
        return
    parts = (TextColumn("{task.description}"), BarColumn(24), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*parts, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def tell(stage: str, done: int, expected: int) -> None:
            if stage.startswith("plan: "):  # it stays when the bar is gone
                progress.console.print(stage, markup=False, highlight=False)
                return
            progress.update(task, description=escape(stage), completed=done, total=expected or None)

        yield tell


@contextmanager
def named_bar(title: str) -> Iterator[Callable[[int, int, str], None] | None]:
    """A progress bar: called with what is done, what is expected and the name of the last piece."""
    if not sys.stderr.isatty():
        yield None
        return
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total, name: progress.update(task, completed=done, total=total, description=escape(name))


@final
class Rate(ProgressColumn):
    """Samples a second over the whole run and the time left.

    rich's own columns forget what is some minutes old, and a shard may take longer.
    """

    def render(self, task: Task) -> Text:
        return Text(rate_and_time_left(task.completed - task.fields["before"], task.remaining or 0, task.elapsed))


@contextmanager
def sample_counter(title: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar with rate and time left: called with finished samples and all samples.

    Samples of the first call come from earlier runs, and do not count for the rate.
    """
    if not sys.stderr.isatty():
        yield None
        return
    parts = (title, BarColumn(24), MofNCompleteColumn(), Rate())
    with Progress(*parts, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None, before=0)

        def tell(done: int, total: int) -> None:
            if progress.tasks[0].total is None:
                progress.reset(task, total=total, completed=done, before=done)
            else:
                progress.update(task, completed=done)

        yield tell


def rate_and_time_left(made: float, missing: float, seconds: float | None) -> str:
    """Text for a run that has `made` samples in so many seconds; empty until the first ones are there."""
    if not made or not seconds:
        return ""
    rate = made / seconds
    left = timedelta(seconds=int(missing / rate))
    return f"{rate:.{0 if rate >= 100 else 2}f} samples/s {left}"
