"""A folder held open: whatever takes the place of its path meanwhile, what is read lies in this folder.

Only regular files beneath it are opened, and no symbolic link is followed. So a named pipe does not wait for ever, a
device does not go on for ever, and nothing outside is read.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import final

HELD = os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")  # false on Windows, where paths must do
FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@final
class OpenFolder:
    """The folder at `path`; close it, or use it in a `with` block. Raises OSError, ValueError (no path)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, FLAGS | os.O_DIRECTORY) if HELD else None

    def open(self, name: str) -> BufferedReader:
        """The regular file `name`, "a/b" for one in a folder inside.

        Raises OSError: ELOOP for a symbolic link on the way, EISDIR for what is no regular file.
        """
        *folders, last = name.split("/")
        if self._descriptor is None:
            return self._open_by_path(name)
        inner = os.dup(self._descriptor)
        try:
            for folder in folders:
                _refuse_link(folder, inner)
                outer, inner = inner, os.open(folder, FLAGS | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=inner)
                os.close(outer)
            return _regular(os.open(last, FLAGS | os.O_NOFOLLOW, dir_fd=inner))
        finally:
            os.close(inner)

    def _open_by_path(self, name: str) -> BufferedReader:
        parts = name.split("/")
        for end in range(len(parts)):
            _refuse_link(self.path / Path(*parts[: end + 1]), None)
        return _regular(os.open(self.path / name, FLAGS))

    def is_still_there(self) -> bool:
        """Whether the path still leads to this folder."""
        if self._descriptor is None:
            return True
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        except OSError:
            return False

    def close(self) -> None:
        """Let go of the folder; twice is fine."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> OpenFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _refuse_link(name: str | Path, folder: int | None) -> None:
    """With O_DIRECTORY a link would be reported as no folder."""
    if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(name))


def _regular(descriptor: int) -> BufferedReader:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EISDIR, "no regular file")
    return os.fdopen(descriptor, "rb")


def read_at_most(file: BufferedReader, most: int) -> bytes | None:
    """The whole content of a file of at most `most` bytes; None for a larger file, of which nothing is read."""
    size = os.fstat(file.fileno()).st_size
    return file.read(size) if size <= most else None
