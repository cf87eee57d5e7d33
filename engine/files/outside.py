"""What is written for a user stands beside an engine, never in it: its own files would be replaced by others."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError
from .file_records import MANIFEST


def check_outside(out: str | os.PathLike[str]) -> None:
    """Raises InputError for a file in an engine directory, or in a folder of one."""
    target = Path(os.path.realpath(Path(out).absolute().parent))
    for folder in (target, target.parent):
        if (folder / MANIFEST).is_file():
            raise InputError(f"output {out} lies in the engine directory {folder.name}; write it beside the engine")
