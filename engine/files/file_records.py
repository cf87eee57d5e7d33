"""The files of an engine: what `engine.json` says of each, and whether it is so.

A file is named by its path beneath the directory. Its SHA-256 finds damage, not forgery.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from ..errors import EngineFileError, InputError, first_line, shown
from ..json_fields import is_integer, read_fields
from .external_weights import external_weights
from .loops import endless_loop_in
from .open_folder import OpenFolder

MANIFEST = "engine.json"


@final
@dataclass(frozen=True)
class FileRecord:
    """The expected content of a file in the directory: `sha256` in 64 hexadecimal digits, and its size in `bytes`."""

    sha256: str
    bytes: int


def read_records(folder: Path, plain: Any) -> dict[str, FileRecord]:
    """The `files` of a manifest. Raises EngineFileError for a name outside the directory and a record that is none."""
    files: dict[str, FileRecord] = {}
    if not isinstance(plain, dict):
        raise damaged(folder, f"files {shown(plain)}, expected an object with named fields")
    for name, record in plain.items():
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts) or any(letter in name for letter in "\\:\0"):
            message = f"engine '{folder}' names the file {shown(name)} outside its directory; do not trust it"
            raise EngineFileError(message)
        try:
            found = FileRecord(**read_fields(f"file {shown(name)}", FileRecord, record))
        except InputError as error:
            raise damaged(folder, str(error)) from None
        fits = isinstance(found.sha256, str) and re.fullmatch("[0-9a-f]{64}", found.sha256)
        if not fits or not is_integer(found.bytes) or not 0 <= found.bytes < 1 << 63:
            raise damaged(folder, f"file {shown(name)} has {shown(record)}, expected a SHA-256 and its bytes")
        files[name] = found
    return files


def check_file(
    held: OpenFolder, name: str, files: Mapping[str, FileRecord], verify: bool, *, network: bool = False
) -> None:
    """Raises EngineFileError unless the file is there, plain, and of its size; with `verify`, of its SHA-256.

    network: with `verify`, the weights beside it are among `files` too, and its loops end.
    """
    folder, record = held.path, files[name]
    try:
        with held.open(name) as file:
            size = os.fstat(file.fileno()).st_size
            if size != record.bytes:
                raise _changed(folder, name, f"{size} bytes", f"{record.bytes}")
            if verify and (found := hashlib.file_digest(file, "sha256").hexdigest()) != record.sha256:
                raise _changed(folder, name, f"SHA-256 {found[:12]}", f"{record.sha256:.12}")
            locations = external_weights(file) if verify and network else set[str]()
            endless = endless_loop_in(file) if verify and network else None
    except FileNotFoundError:
        message = f"engine '{folder}': the file {shown(name)} is missing; rebuild the engine or copy it again"
        raise EngineFileError(message) from None
    except (OSError, ValueError) as error:  # ValueError: a name that is no Unicode
        if getattr(error, "errno", None) == errno.ELOOP:
            message = f"'{folder / name}' is a symbolic link; an engine holds plain files, copy the file itself"
            raise EngineFileError(message) from None
        reason = getattr(error, "strerror", None) or first_line(error)
        raise EngineFileError(f"engine '{folder}': the file {shown(name)} cannot be read: {reason}") from None
    if locations is None:
        raise EngineFileError(f"'{folder / name}' is no ONNX file; rebuild the engine or copy it again")
    if endless is not None:
        raise EngineFileError(f"'{folder / name}': {endless}; build the engine of a network that ends")
    for location in sorted(locations - files.keys()):
        raise EngineFileError(
            f"'{folder / name}' keeps weights in {shown(location)}, which is not among the files of {MANIFEST}; "
            "rebuild the engine"
        )


def _changed(folder: Path, name: str, got: str, expected: str) -> EngineFileError:
    return EngineFileError(
        f"engine '{folder}': the file {shown(name)} has {got}, expected {expected}: "
        "it was changed or not copied whole; rebuild the engine or copy it again"
    )


def damaged(folder: Path, why: str) -> EngineFileError:
    """The error about a manifest that does not say what it should."""
    return EngineFileError(f"'{folder / MANIFEST}' is damaged: {why}; rebuild the engine or copy it again")
