"""The exceptions of pfdiff. Each message is one line: what was got, what was expected, what to do.

The command line prints the line and ends with status 2; Python callers catch `PfdiffError` or a subclass.

Messages quote files that anybody may have written. So what a terminal would obey is escaped in every message, and
values from files are shown in part.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable

LONGEST_MESSAGE = 1000  # characters; a list of backends with their reasons has some hundred


class PfdiffError(Exception):
    """Every error that pfdiff raises on purpose. The message becomes `printable`, and one line."""

    def __init__(self, message: str = "") -> None:
        line = printable(message)
        if len(line) > LONGEST_MESSAGE:  # the remedy is at its end
            line = f"{line[: LONGEST_MESSAGE - 200]}...{line[-190:]}"
        super().__init__(line)


class InputError(PfdiffError, ValueError):
    """An argument, a network or a file given by the user does not fit."""


class EngineFileError(PfdiffError):
    """An engine directory or a plan is missing, damaged, of another version or not trusted."""


class BackendError(PfdiffError, RuntimeError):
    """A backend is not installed, refuses the network, or fails while it runs."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text that is not empty, at most 200 characters; else the error's class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[0])[:200] if lines else type(error).__name__


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`; did you mean euler?`, the nearest of the known names; empty where none is near."""
    near = difflib.get_close_matches(given.lower(), list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


# Text from files.
def printable(text: str) -> str:
    """The text with control characters, line ends, direction marks and what is no Unicode as escapes: `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


class _Short(reprlib.Repr):
    """`repr` of any value in at most about 60 characters; integers have as many digits as a file likes."""

    def repr_int(self, x: int, level: int) -> str:
        return str(x) if abs(x) < 10**20 else f"an integer of {x.bit_length()} bits"


_short = _Short()
_short.maxlevel, _short.maxlist, _short.maxtuple, _short.maxdict = 2, 6, 6, 3
_short.maxstring, _short.maxother = 58, 58


def shown(value: object) -> str:
    """A value from a file for a message: quoted, at most 60 characters."""
    try:
        text = _short.repr(value)
    except ValueError:  # of an integer of thousands of digits, inside of something
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
