"""What killed writers of earlier versions left beside a target, under names with a process number or random letters.

    .NAME.PID.partial   pictures, a file or a folder
    .NAME.partial-PID   compiled kernels, a folder
    .NAME.xxxxxxxx      an exported sampler, a folder from `tempfile`

These have no lock. So they count as left only a day after their last change, with no process of that number here.
Folders from `tempfile` must hold nothing but what an export wrote.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

AFTER_S = 24 * 3600.0


def old_leftovers(target: Path, names: Iterable[str]) -> Iterator[Path]:
    """Of the `names` in the folder of `target`, the paths of what was left for it. Raises OSError."""
    own = f".{target.name}."
    numbered = re.compile(rf"{re.escape(own)}(?:(\d+)\.partial|partial-(\d+))")
    lettered = re.compile(rf"{re.escape(own)}[a-z0-9_]{{8}}")
    for name in names:
        if not name.startswith(own):  # a cache folder has thousands of others
            continue
        path = target.with_name(name)
        if found := numbered.fullmatch(name):
            left = not _runs(int(found[1] or found[2]))
        else:
            left = bool(lettered.fullmatch(name)) and _is_export(path, target.name)
        if left and time.time() - _changed(path) > AFTER_S:
            yield path


def _runs(process: int) -> bool:
    """Whether a process has this number; one of another user counts."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _is_export(path: Path, name: str) -> bool:
    """A folder that holds nothing but files that a sampler of this name is written into."""
    if path.is_symlink() or not path.is_dir():
        return False
    return all(one.is_file() and (one.name == name or one.suffix == ".data") for one in path.iterdir())


def _changed(path: Path) -> float:
    """The last change of it or of what it holds, in seconds."""
    held = list(path.iterdir()) if path.is_dir() and not path.is_symlink() else []
    return max(one.lstat().st_mtime for one in (path, *held))
