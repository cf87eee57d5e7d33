"""The cache folder: results that can be computed again, and a journal that survives an interruption.

    $XDG_CACHE_HOME/pfdiff, else $HOME/.cache/pfdiff, else pfdiff-UID in the system's folder for temporary files

Everything there is named by the SHA-256 of its inputs; for a module, see export/sources/module_digest.py. Deleting the
folder costs time only.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import stat
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from .array_files import open_regular
from .atomic import replacing
from .errors import InputError
from .json_fields import is_integer, is_number
from .open_folder import read_at_most

DIGEST_BYTES = 32
MOST_HEADER_BYTES = 4096  # of a .npy file, and the digest
MOST_JOURNAL_BYTES = 64 << 20


def cache_folder() -> Path:
    """The folder, which need not exist yet. Relative paths in the environment are ignored, as XDG says."""
    for base, below in ((os.environ.get("XDG_CACHE_HOME"), ""), (os.environ.get("HOME"), ".cache")):
        if base and Path(base).is_absolute():
            return Path(base) / below / "pfdiff"
    return _shared_folder()


def _shared_folder() -> Path:
    """The folder of this user where every user may create some."""
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
    """Arrays float32 by key, one .npy file each with the SHA-256 of its content at its end, in `folder`.

    A file appears whole or not at all.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
        """The array of `key`, or None when it is not there, damaged, not finite or of another shape."""
        content = _read(self.folder / f"{key}.npy", MOST_HEADER_BYTES + 4 * math.prod(shape))
        data, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            return None
        try:
            found: NDArray[np.float32] = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError):
            return None
        fits = found.shape == shape and found.dtype == np.float32 and bool(np.isfinite(found).all())
        return found if fits else None

    def put(self, key: str, value: NDArray[np.float32]) -> None:
        """Keep `value`. Raises InputError when the folder cannot be written."""
        sink = io.BytesIO()
        np.save(sink, value)
        data = sink.getvalue()
        try:
            make_private(self.folder)
            # Not forced to the disk: `get` ignores a file that a power failure cut short.
            with replacing(self.folder / f"{key}.npy", durable=False) as part:
                part.write_bytes(data + hashlib.sha256(data).digest())
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def keep(self, key: str, value: NDArray[np.float32]) -> None:
        """`put`; where the folder cannot be written, one warning in its place."""
        _keeping(self.folder, lambda: self.put(key, value))


@final
class Journal:
    """Named JSON values, appended line by line, so that a run goes on after an interruption; the last line wins.

    A line that is damaged loses itself alone. Values are what a file says: check their type.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        for line in _read(path, MOST_JOURNAL_BYTES).splitlines():
            with contextlib.suppress(ValueError, TypeError, RecursionError):  # an interruption cut it short
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
        """Keep a value, on the disk at once. Raises InputError when the file cannot be written."""
        self._values[key] = value
        try:
            make_private(self.path.parent)
            _append(self.path, f"{json.dumps([key, value])}\n".encode())
        except OSError as error:
            raise _unwritable(self.path.parent, error) from error

    def keep(self, key: str, value: Any) -> None:
        """`put`; where the file cannot be written, one warning in its place, and the value is kept in memory."""
        _keeping(self.path.parent, lambda: self.put(key, value))


def make_private(folder: Path) -> None:
    """Create a folder of the cache, readable by its owner alone. Raises OSError, InputError for another user's."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if _is_anybodys(folder):
        raise InputError(
            f"the cache folder {_shared_folder()} is a link, or open to other users; remove it, or set XDG_CACHE_HOME"
        )


# Files.
def _read(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes, of nobody else's; empty otherwise."""
    if _is_anybodys(path):
        return b""
    try:
        with open_regular(path) as file:
            return read_at_most(file, most) or b""
    except (InputError, OSError):
        return b""


def _append(path: Path, line: bytes) -> None:
    """Append a line in one system call; after a line that an interruption cut short it begins a new one."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        with os.fdopen(os.dup(descriptor), "rb") as file:
            file.seek(max(0, status.st_size - 1))
            cut = file.read(1) not in (b"", b"\n")
        if os.write(descriptor, b"\n" + line if cut else line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def _is_anybodys(path: Path) -> bool:
    """Whether `path` lies where every user may create files, in a folder that is not this user's own alone."""
    shared = _shared_folder()
    if not hasattr(os, "getuid") or not path.is_relative_to(shared):
        return False
    try:
        status = os.lstat(shared)
    except FileNotFoundError:
        return False
    return not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or bool(status.st_mode & 0o077)


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"the cache folder {folder} cannot be written ({error.strerror}); set XDG_CACHE_HOME to one that can"
    )


_announced: set[Path] = set()


def _keeping(folder: Path, put: Callable[[], None]) -> None:
    try:
        put()
    except InputError as error:
        if folder not in _announced:
            _announced.add(folder)
            warnings.warn(f"{error}; nothing is kept meanwhile", RuntimeWarning, stacklevel=4)
