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
