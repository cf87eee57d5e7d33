"""Arrays and numbers from files that a user names: .npy, .npz, .safetensors, .txt, .json.

Nothing in a file is believed before it is checked: only regular files are opened (a named pipe would wait for ever, a
device never end), a header may not promise more than the file holds, an archive not unpack to many times its size.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
import zipfile
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from ..errors import InputError, first_line

FORMATS = (".npy", ".npz", ".safetensors")
MOST_TEXT_BYTES = 64 << 20
MOST_HEADER_BYTES = 16 << 20  # of a .safetensors file
# What an archive may unpack to: FREE_BYTES, or MOST_RATIO times its own size. Pictures pack 2 to 30 fold.
FREE_BYTES, MOST_RATIO = 256 << 20, 64
SAFETENSORS = {  # NumPy has no bfloat16: its bits are the upper half of a float32
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"},
    **{"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"},
}


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """A regular file, opened to be read. Raises InputError for anything else, at once."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read {os.fspath(path)!r}: {reason}; check the path and its rights") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{os.fspath(path)!r} is no regular file; expected one with numbers")
    return os.fdopen(descriptor, "rb")


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a regular file of at most 64 MiB, UTF-8. Raises InputError."""
    with open_regular(path) as file:
        data = file.read(MOST_TEXT_BYTES + 1)
    if len(data) > MOST_TEXT_BYTES:
        raise InputError(f"{os.fspath(path)!r} is larger than {MOST_TEXT_BYTES >> 20} MiB; expected a list of numbers")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InputError(f"{os.fspath(path)!r} is no text; expected numbers in UTF-8") from None


def read_array(path: str | os.PathLike[str], names: Sequence[str] = ()) -> NDArray[Any]:
    """The array in a .npy file; of a .npz or .safetensors file the first of `names` in it, or its only array.

    bfloat16 comes back as float32. Raises InputError.
    """
    where, kind = repr(os.fspath(path)), Path(path).suffix.lower()
    if kind not in FORMATS:
        raise InputError(f"{where} ends in '{kind}', expected {', '.join(FORMATS)}")
    with open_regular(path) as file:
        try:
            if kind == ".npy":
                return _npy(file, os.fstat(file.fileno()).st_size, where)
            return _npz(file, names, where) if kind == ".npz" else _safetensors(file, names, where)
        except InputError:
            raise
        except Exception as error:  # the readers' exceptions have no common base
            reason = first_line(error)[:120]
            raise InputError(f"{where} is damaged or of another kind ({reason}); expected a {kind} file") from None


def array_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the arrays in a .npz or .safetensors file; () for a .npy, whose array has none. Raises InputError."""
    where, kind = repr(os.fspath(path)), Path(path).suffix.lower()
    if kind not in FORMATS:
        raise InputError(f"{where} ends in '{kind}', expected {', '.join(FORMATS)}")
    if kind == ".npy":
        return ()
    with open_regular(path) as file:
        try:
            if kind == ".npz":
                with zipfile.ZipFile(file) as archive:
                    return tuple(one.filename.removesuffix(".npy") for one in archive.infolist())
            return tuple(name for name in _header(file, where)[0] if name != "__metadata__")
        except InputError:
            raise
        except Exception as error:  # the readers' exceptions have no common base
            reason = first_line(error)[:120]
            raise InputError(f"{where} is damaged or of another kind ({reason}); expected a {kind} file") from None


def _npy(file: Any, size: int, where: str) -> NDArray[Any]:
    """The array of an open .npy file of `size` bytes."""
    version = npy_format.read_magic(file)
    read_header = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject or dtype.kind not in "biuf":
        raise InputError(f"{where} holds {dtype}, expected numbers")
    count = math.prod(shape)
    if count * dtype.itemsize > size:
        raise InputError(f"{where} promises {count} numbers and holds fewer; write it again")
    values = _filled(file, count, dtype, where)
    return values.reshape(shape, order="F" if fortran else "C")


def _filled(file: Any, count: int, dtype: np.dtype[Any], where: str) -> NDArray[Any]:
    """The next `count` numbers of an open file, in memory of their own, which may be written to."""
    values = np.empty(count, dtype)
    view, done = values.view(np.uint8).data, 0
    while done < len(view):
        read = file.readinto(view[done:])
        if not read:
            raise InputError(f"{where} promises {count} numbers and holds fewer; write it again")
        done += read
    return values


def _npz(file: BinaryIO, names: Sequence[str], where: str) -> NDArray[Any]:
    with zipfile.ZipFile(file) as archive:
        members = {one.filename.removesuffix(".npy"): one for one in archive.infolist()}
        member = members[chosen(list(members), names, where)]
        if member.file_size > max(FREE_BYTES, MOST_RATIO * member.compress_size):
            raise InputError(
                f"{where} unpacks to {member.file_size >> 20} MiB from {member.compress_size >> 20} MiB, which no "
                "pictures or embeddings do; store it uncompressed (numpy.savez)"
            )
        with archive.open(member) as packed:
            return _npy(packed, member.file_size, where)


def _safetensors(file: BinaryIO, names: Sequence[str], where: str) -> NDArray[Any]:
    """By the format itself (length, JSON, data), since the library's readers map what is at the path, not this file."""
    size = os.fstat(file.fileno()).st_size
    header, length = _header(file, where)
    header.pop("__metadata__", None)
    name = chosen(list(header), names, where)
    kind, shape, (start, end) = header[name]["dtype"], header[name]["shape"], header[name]["data_offsets"]
    if kind not in SAFETENSORS:
        raise InputError(f"{where}: {name} is of dtype {kind}, expected one of {', '.join(SAFETENSORS)}")
    dtype = np.dtype(SAFETENSORS[kind])
    if not 0 <= start <= end <= size - 8 - length or end - start != math.prod(shape) * dtype.itemsize:
        raise InputError(f"{where}: {name} of shape {shape} does not fit its {end - start} bytes; write it again")
    file.seek(8 + length + start)
    values = _filled(file, math.prod(shape), dtype, where).reshape(shape)
    return (values.astype("<u4") << np.uint32(16)).view("<f4") if kind == "BF16" else values


def _header(file: BinaryIO, where: str) -> tuple[dict[str, Any], int]:
    """The header of an open .safetensors file, and its bytes."""
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(MOST_HEADER_BYTES, os.fstat(file.fileno()).st_size):
        raise InputError(f"{where} promises a header of {length} bytes; write it again")
    return json.loads(file.read(length)), length


def chosen(held: Sequence[str], names: Sequence[str], where: str) -> str:
    """The first of `names` that a file holds, else the only array in it. Raises InputError that lists what it holds."""
    for name in names:
        if name in held:
            return name
    if len(held) == 1:
        return held[0]
    listed = ", ".join(sorted(held)[:8]) + (", ..." if len(held) > 8 else "")
    wanted = " or ".join(dict.fromkeys(filter(None, names))) or "a single array"
    raise InputError(f"{where} holds {listed or 'nothing'}; expected {wanted}")
