"""What is shown while work goes on: on stderr, and only if that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, final

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.status import Status

Item = TypeVar("Item")


@final
class Stages:
    """Called with a line at each stage, shows it beside a spinner; `last` is the latest line."""

    def __init__(self, status: Status | None) -> None:
        self._status = status
        self.last = ""

    def __call__(self, stage: str) -> None:
        self.last = stage
        if self._status:
            self._status.update(escape(stage))


@contextmanager
def stages() -> Iterator[Stages]:
    """A `Stages` whose spinner is gone when the block ends."""
    if not sys.stderr.isatty():
        yield Stages(None)
        return
    with Console(stderr=True).status("") as status:
        yield Stages(status)


def bar(items: Sequence[Item], title: str) -> Iterator[Item]:
    """The items, with a progress bar if there are several."""
    if len(items) < 2 or not sys.stderr.isatty():
        return iter(items)
    return iter(track(items, description=title, console=Console(stderr=True), transient=True))
