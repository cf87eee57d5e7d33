"""The cache folder: results that can be computed again, and a journal that survives an interruption.

    $XDG_CACHE_HOME/pfdiff, else $HOME/.cache/pfdiff, else pfdiff-UID in the system's folder for temporary files

Everything there is named by the SHA-256 of its inputs; for a module, see export/sources/module_digest.py. Deleting the
folder costs time only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from .atomic import replacing
from .errors import InputError


def cache_folder() -> Path:
    """The folder, which need not exist yet. Relative paths in the environment are ignored, as XDG says."""
    for base, below in ((os.environ.get("XDG_CACHE_HOME"), ""), (os.environ.get("HOME"), ".cache")):
        if base and Path(base).is_absolute():
            return Path(base) / below / "pfdiff"
    owner = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"pfdiff-{owner}"


def content_key(*parts: Any) -> str:
    """SHA-256, hexadecimal, of plain JSON data and arrays."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
        digest.update(b"|")
    return digest.hexdigest()


@final
class ArrayStore:
    """Arrays float32 by key, one .npy file each, in `folder`; a file appears whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
        """The array of `key`, or None when it is not there, damaged or of another shape."""
        try:
            found = np.load(self.folder / f"{key}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return found if found.shape == shape and found.dtype == np.float32 else None

    def put(self, key: str, value: NDArray[np.float32]) -> None:
        """Keep `value`. Raises InputError when the folder cannot be written."""
        path = self.folder / f"{key}.npy"
        try:
            make_private(self.folder)
            # Not forced to the disk: `get` ignores a file that a power failure cut short.
            with replacing(path, durable=False) as part, open(part, "wb") as file:
                np.save(file, value)
        except OSError as error:
            raise _unwritable(self.folder, error) from error


@final
class Journal:
    """Named JSON values, appended line by line, so that a run goes on after an interruption; the last line wins."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            lines = []
        for line in lines:
            with contextlib.suppress(ValueError, TypeError):  # a line that an interruption cut short
                key, value = json.loads(line)
                self._values[key] = value

    def get(self, key: str) -> Any:
        """The value of `key`, None when there is none."""
        return self._values.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a value, on the disk at once. Raises InputError when the file cannot be written."""
        self._values[key] = value
        try:
            make_private(self.path.parent)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(f"{json.dumps([key, value])}\n")
        except OSError as error:
            raise _unwritable(self.path.parent, error) from error


def make_private(folder: Path) -> None:
    """Create a folder of the cache, readable by its owner alone."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"the cache folder {folder} cannot be written ({error.strerror}); set XDG_CACHE_HOME to one that can"
    )
