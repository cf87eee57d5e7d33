"""The exceptions of pfdiff. Each message is one line: what was got, what was expected, what to do.

The command line prints the line and ends with status 2; Python callers catch `PfdiffError` or a subclass.
"""

from __future__ import annotations


class PfdiffError(Exception):
    """Every error that pfdiff raises on purpose."""


class InputError(PfdiffError, ValueError):
    """An argument, a network or a file given by the user does not fit."""


class EngineFileError(PfdiffError):
    """An engine directory or a plan is missing, damaged, of another version or not trusted."""


class BackendError(PfdiffError, RuntimeError):
    """A backend is not installed, refuses the network, or fails while it runs."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text that is not empty, at most 300 characters; else the error's class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
