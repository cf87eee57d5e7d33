"""Files and folders that appear whole or not at all.

What is written stands beside its target under a name of its own: `.NAME.part-HEX`, of a folder `.NAME.building-HEX`.
It is synced, and takes the place of the target in one system call: a file by a rename, a folder by
`renameat2(RENAME_EXCHANGE)`. Where the file system cannot swap folders, two renames do it.

The writer holds a lock on what it writes. So what a killed process left is known by its free lock, and the next writer
of the same target removes it. Windows has no such locks; there it stays.

Whoever reads an engine to write it again does both inside `locked_for_build`. Else of two writers the second undoes the
work of the first.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import EngineFileError
from .old_leftovers import old_leftovers
from .progress import Lines

AT_FDCWD = -100
RENAME_EXCHANGE = 2


# Writing.
@contextlib.contextmanager
def replacing(target: Path, *, durable: bool = True) -> Iterator[Path]:
    """An empty file that takes the place of the file `target` when the block ends well.

    After an exception, interruption or full disk `target` is as it was, and the new file is gone. durable: it is
    forced to the disk first, and so survives a power failure. Raises OSError.
    """
    with writing_beside(target) as part:
        yield part
        if durable:
            sync(part)
        os.replace(part, target)
        if durable:
            sync(target.parent)


@contextlib.contextmanager
def writing_beside(target: Path) -> Iterator[Path]:
    """An empty file beside `target` that is gone at the end, unless the block has renamed it. Raises OSError."""
    _sweep(target)
    with _claimed(lambda: target.with_name(f"{part_prefix(target.name)}{secrets.token_hex(4)}"), _create) as part:
        yield part


@contextlib.contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """An empty folder that takes the place of the folder `target` when the block ends well.

    After an exception, interruption or full disk `target` is as it was, and the new folder is gone. Raises OSError.
    """
    with folder_beside(target) as staging:
        yield staging
        for folder, _, names in os.walk(staging):
            for name in names:
                sync(Path(folder, name))
            sync(Path(folder))
        swap(staging, target)
        sync(target.parent)


@contextlib.contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """An empty folder beside `target` that is gone at the end, unless the block has renamed it. Raises OSError."""
    _sweep(target)
    with _claimed(lambda: target.with_name(f".{target.name}.building-{secrets.token_hex(4)}"), os.mkdir) as staging:
        yield staging


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns an OSError inside into an EngineFileError of one line about the engine or plan `target`."""
    try:
        yield
    except OSError as error:
        raise EngineFileError(
            f"cannot write engine '{target}': {error.strerror or error}; nothing was changed, "
            "free some space or choose another place"
        ) from error


def part_prefix(name: str) -> str:
    """How the names begin of files that are being written in place of the file `name`."""
    return f".{name}.part-"


def sync(path: Path) -> None:
    """Force a file or a folder to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there and can be removed. Raises OSError for a file that cannot."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def swap(staging: Path, target: Path) -> None:
    """Put the folder `staging` in the place of `target`, and what stood there at `staging`. Raises OSError."""
    if not target.exists():
        os.rename(staging, target)
        return
    if _exchange(staging, target):
        return
    former = target.with_name(f".{target.name}.former-{secrets.token_hex(4)}")
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(BlockingIOError):
            _hold(stack, target)  # the lock moves with the folder: nobody takes `former` for a leftover
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


# Locks.
@contextlib.contextmanager
def locked_for_build(target: Path, say: Lines) -> Iterator[None]:
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
            # Who held it before has removed the file; a lock on the removed file would keep nobody out.
            if _is_still(descriptor, lock):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path, wait_s: float = 30.0, say: Lines | None = None) -> Iterator[None]:
    """Holds the lock on a folder, for which it waits; Windows has none.

    say: called once when the wait has lasted a tenth of `wait_s`. Raises OSError, also when the wait is over.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    start = time.monotonic()
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = time.monotonic() - start
                if waited > wait_s:
                    raise
                if say and waited > wait_s / 10:
                    say(f"waiting for another process that holds the lock on {folder}, at most {wait_s:.0f} s")
                    say = None
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _claimed(name: Callable[[], Path], create: Callable[[Path], None]) -> Iterator[Path]:
    """A new file or folder, locked; at the end what still has its name is removed."""
    while True:
        part = name()
        try:
            create(part)
        except FileExistsError:
            continue
        try:
            with contextlib.ExitStack() as stack:
                # Between its creation and the lock another writer may have taken it for a leftover.
                try:
                    held = _hold(stack, part)
                except (BlockingIOError, FileNotFoundError):
                    continue
                if held is not None and not _is_still(held, part):
                    continue
                yield part
                return
        finally:
            with contextlib.suppress(OSError):
                remove(part)


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))


def _hold(stack: contextlib.ExitStack, path: Path) -> int | None:
    """A descriptor that holds the lock on `path` as long as the stack; None where there are no locks.

    Raises BlockingIOError when somebody else has it.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    descriptor = os.open(path, os.O_RDONLY)
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return None
    return descriptor


def _is_still(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


# Leftovers.
def _sweep(target: Path) -> None:
    """Remove what killed writers of this target left, or bring back the folder that they had moved aside."""
    beginnings = (part_prefix(target.name), f".{target.name}.building-", former := f".{target.name}.former-")
    with contextlib.suppress(OSError):
        names = os.listdir(target.parent)
        for left in list(old_leftovers(target, names)):
            remove(left)
        for name in [name for name in names if name.startswith(beginnings)]:
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                left = target.with_name(name)
                if _hold(stack, left) is None:
                    continue
                if name.startswith(former) and not target.exists():
                    os.rename(left, target)
                else:
                    remove(left)
