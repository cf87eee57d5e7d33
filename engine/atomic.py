"""A directory that appears whole or not at all.

It is built as a sibling `.NAME.building-*`, synced, and swapped with the former one by `renameat2(RENAME_EXCHANGE)`,
so that no moment exists without an engine; where the file system cannot swap, two renames do it. Whoever builds holds
a lock on the sibling: what a killed build left behind is known by its free lock and removed by the next one.

Whoever reads a directory to write it again does both inside `alone`, or of two writers one would undo the other's work.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import EngineFileError

AT_FDCWD = -100
RENAME_EXCHANGE = 2


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns an OSError inside into one line about `target`."""
    try:
        yield
    except OSError as error:
        raise EngineFileError(
            f"cannot write engine '{target}': {error.strerror or error}; nothing was changed, "
            "free some space or choose another place"
        ) from error


@contextlib.contextmanager
def alone(target: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One writer of `target` at a time; the others wait, and say so.

    The lock is on a sibling `.NAME.lock`, since `target` itself may be replaced, and is gone afterwards. Where the
    folder cannot be written, and on Windows, nothing is locked. Raises EngineFileError.
    """
    target = Path(os.path.realpath(target))
    if sys.platform == "win32" or not os.access(target.parent, os.W_OK):
        yield
        return
    lock = target.with_name(f".{target.name}.lock")
    with writing(target):
        descriptor = _acquired(lock, lambda: say(f"waiting for another build of {target.name}"))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()  # before it is free: see `_acquired`
        os.close(descriptor)


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """An empty directory that takes the place of `target` when the block ends well.

    After an exception, interruption or full disk `target` is as it was, and the new directory is gone.
    Raises EngineFileError when it cannot be written.
    """
    with writing(target):
        _sweep(target)
        staging = target.with_name(f".{target.name}.building-{secrets.token_hex(4)}")
        try:
            staging.mkdir()
            with locked(staging):
                yield staging
                for folder, _, names in os.walk(staging):
                    for name in names:
                        sync(Path(folder, name))
                    sync(Path(folder))
                _swap(staging, target)
                sync(target.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def sync(path: Path) -> None:
    """Force a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(staging: Path, target: Path) -> None:
    """Put `staging` in the place of `target`; what stood there is at `staging` afterwards."""
    if not target.exists():
        os.rename(staging, target)
        return
    if _exchange(staging, target):
        return
    former = target.with_name(f".{target.name}.former-{secrets.token_hex(4)}")
    os.rename(target, former)
    try:
        os.rename(staging, target)
    except BaseException:
        os.rename(former, target)
        raise
    os.rename(former, staging)


def _exchange(one: Path, other: Path) -> bool:
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # this file system or kernel cannot swap
        return False
    raise OSError(number, os.strerror(number))


def _acquired(lock: Path, wait: Callable[[], None]) -> int:
    """A descriptor that holds the lock on the file; `wait` is called when somebody else has it."""
    import fcntl

    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                wait()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Who held it before has removed the file; a lock on that one would keep nobody out.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock on a folder, for which it waits; Windows has none. Raises OSError."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sweep(target: Path) -> None:
    """Remove what killed builds of this target left."""
    for left in target.parent.glob(f".{target.name}.building-*"):
        if sys.platform == "win32":
            return
        import fcntl

        with contextlib.suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(descriptor)
