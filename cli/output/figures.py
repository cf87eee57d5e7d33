"""Numbers as they stand in a table and in the file of --json."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...engine.errors import InputError
from ...engine.errors import printable as one_line


def printable(text: str) -> str:
    """Text from a file as it may be shown: control characters, which a terminal would obey, are escaped."""
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in text)


def as_name(path: object) -> str:
    """A file's name as it may be shown, on one line: bytes that are no letters are escaped."""
    return one_line(str(path))


def narrow(line: str, most: int = 80) -> str:
    """A line of a build within `most` columns; what it says beside samplers stands on lines of its own."""
    parts = line.replace("; pfdiff tune", "\npfdiff tune").replace(" (grid diffusers keeps", "\n(grid diffusers keeps")
    first, *rest = parts.split("\n")
    rest = [f"  {one.strip('()')}" for one in rest]
    style = {"subsequent_indent": "  ", "break_long_words": False, "break_on_hyphens": False}
    return "\n".join(textwrap.fill(one, most, **style) for one in (first, *rest))


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """Write figures and the machine they were measured on as JSON. Raises InputError when that cannot be written."""
    from ...bench.measuring.machine import describe

    write_json(path, {"machine": describe(), **figures})


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write what --json asks for. Raises InputError when that cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--json {path}: {error.strerror}; choose a file that can be written") from None
