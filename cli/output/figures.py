"""Numbers as they stand in a table and in the file of --json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...engine.errors import InputError


def printable(text: str) -> str:
    """Text from a file as it may be shown: control characters, which a terminal would obey, are escaped."""
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in text)


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
