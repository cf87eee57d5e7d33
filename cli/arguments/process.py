"""The process of a command: the command line's own (`pfdiff.cli.command`), or that of whoever called `main`."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys

OWN_PROCESS = object()  # the `obj` of Typer's context in a process of the command line's own
_statuses: list[int] = []


def leave_at_once() -> None:
    """Call first of all: once `ends_with` has been called, the process ends when all other exit handlers are done.

    Python would take its modules apart before, which takes as long as a short command.
    """
    atexit.register(_leave)


def ends_with(status: int) -> int:
    """The exit status of the process."""
    _statuses.append(status)
    return status


def _leave() -> None:
    if not _statuses:  # an error of our own: Python's status is 1
        return
    with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads: Python says so in its own way
        for stream in filter(None, (sys.stdout, sys.stderr)):  # None: closed before Python began
            stream.flush()
        os._exit(_statuses[-1])
