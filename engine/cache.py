"""The cache folder: results that can be computed again, and a journal that survives an interruption.

    $XDG_CACHE_HOME/pfdiff, else $HOME/.cache/pfdiff, else pfdiff-UID in the system's folder for temporary files

Everything there is named by the SHA-256 of its inputs; for a module, see export/sources/module_digest.py. Deleting the
folder costs time only.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import hashlib
import io
import json
import math
import os
import shutil
import stat
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from .atomic import replacing
from .errors import InputError
from .files.array_files import open_regular
from .files.open_folder import read_at_most
from .json_fields import is_integer, is_number

DIGEST_BYTES = 32
MOST_HEADER_BYTES = 4096  # of a .npy file, and the digest
MOST_JOURNAL_BYTES = 256 << 20  # that are read


def cache_folder() -> Path:
    """The folder, which need not exist yet. Relative paths in the environment are ignored, as XDG says."""
    for base, below in ((os.environ.get("XDG_CACHE_HOME"), ""), (os.environ.get("HOME"), ".cache")):
        if base and Path(base).is_absolute():
            return Path(base) / below / "pfdiff"
    return _temporary(tempfile.gettempdir())


@lru_cache
def _temporary(place: str) -> Path:
    """A folder in a place that others write to as well: this user's own and private one, else one for this process.

    Another user may have put a folder or a link where ours would be, to have us write through it or read what he wrote.
    """
    if not hasattr(os, "getuid"):
        return Path(place) / "pfdiff-user"
    folder = Path(place) / f"pfdiff-{os.getuid()}"
    with contextlib.suppress(OSError):
        os.mkdir(folder, 0o700)
    with contextlib.suppress(OSError):
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return folder
    own = Path(tempfile.mkdtemp(prefix="pfdiff-", dir=place))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    warnings.warn(
        f"the cache folder {folder} is not private to this user, so nothing in it is used; results are kept for this "
        "process only, set HOME or XDG_CACHE_HOME to keep them",
        stacklevel=2,
    )
    return own


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
    """Arrays float32 by key, one .npy file each with the SHA-256 of its content at its end, in `folder`.

    A file appears whole or not at all.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
        """The array of `key`, or None when it is not there, damaged, not finite or of another shape."""
        try:
            with open_regular(self.folder / f"{key}.npy") as file:
                content = read_at_most(file, MOST_HEADER_BYTES + 4 * math.prod(shape)) or b""
            data, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
            if hashlib.sha256(data).digest() != digest:
                return None
            found: NDArray[np.float32] = np.load(io.BytesIO(data), allow_pickle=False)
        except (InputError, OSError, ValueError, EOFError):
            return None
        fits = found.shape == shape and found.dtype == np.float32 and bool(np.isfinite(found).all())
        return found if fits else None

    def put(self, key: str, value: NDArray[np.float32]) -> None:
        """Keep `value`; where the folder cannot be written, say so once and go on without."""
        sink = io.BytesIO()
        np.save(sink, value)
        data = sink.getvalue()
        try:
            make_private(self.folder)
            # Not forced to the disk: `get` ignores a file that a power failure cut short.
            with replacing(self.folder / f"{key}.npy", durable=False) as part:
                part.write_bytes(data + hashlib.sha256(data).digest())
        except OSError as error:
            _announce_unwritable(self.folder, error)


@final
class Journal:
    """Named JSON values, appended line by line, so that a run goes on after an interruption; the last line wins."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        lines: list[bytes] = []
        if path.exists():
            with contextlib.suppress(InputError), open_regular(path) as file:
                lines = file.read(MOST_JOURNAL_BYTES).splitlines()
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, RecursionError):  # a line that an interruption cut short
                key, value = json.loads(line)
                self._values[key] = value

    def get(self, key: str) -> Any:
        """The value of `key`, None when there is none."""
        return self._values.get(key)

    def number(self, key: str) -> float | None:
        """The value of `key`, None when there is none or it is no number; it may be infinite."""
        value = self._values.get(key)
        if isinstance(value, float):
            return None if math.isnan(value) else value
        return float(value) if value is not None and is_integer(value) and is_number(value) else None

    def put(self, key: str, value: Any) -> None:
        """Keep a value, on the disk at once; where the file cannot be written, say so once and go on without."""
        self._values[key] = value
        try:
            make_private(self.path.parent)
            _append_line(self.path, json.dumps([key, value]).encode())
        except OSError as error:
            _announce_unwritable(self.path.parent, error)


def make_private(folder: Path) -> None:
    """Create a folder of the cache, readable by its owner alone."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def _append_line(path: Path, line: bytes) -> None:
    """Append a line to a regular file, never through a link; what an interruption cut short before it ends first."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(os.open(path, flags, 0o600), "r+b", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        torn = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write(b"\n" * torn + line + b"\n")


_announced: set[Path] = set()


def _announce_unwritable(folder: Path, error: OSError) -> None:
    """One warning for each folder in a process."""
    if folder in _announced:
        return
    _announced.add(folder)
    warnings.warn(
        f"the cache folder {folder} cannot be written ({error.strerror or error}), so results are not kept; set "
        "XDG_CACHE_HOME to one that can",
        stacklevel=3,
    )
