"""The folder of a bulk run: its manifest holds the recipe and lists the finished shards.

    manifest.json     {format, recipe, solver, finished, complete,
                       shards: [{name, first, count, bytes, sha256, made_by}]}
    shard-000000.*    the shards that the manifest lists; any other file of a shard is unfinished and does not count

The manifest is replaced by a rename after every shard. It holds no times and no machines, so it is the same for the
same samples. A repeated run compares the recipe, verifies the listed shards and makes the missing ones.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from ..atomic import part_prefix, remove, replacing
from ..errors import InputError, first_line, shown
from ..files.array_files import open_regular
from ..files.open_folder import read_at_most
from ..json_fields import read_fields
from .recipe import Recipe
from .shards import FORMATS, PART, digest_of

FORMAT = 1
MANIFEST = "manifest.json"
LARGEST_BYTES = 256 << 20  # 250 bytes a shard, and the conditions


@final
@dataclass(frozen=True)
class ShardRecord:
    """A finished shard. `made_by`: backend, its version, device and precision."""

    name: str
    first: int
    count: int
    bytes: int
    sha256: str
    made_by: str


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turns an OSError inside into one line about the folder of a run."""
    try:
        yield
    except OSError as error:
        where = Path(error.filename) if error.filename else folder
        raise InputError(
            f"cannot write '{where}': {error.strerror or error}; finished shards are kept: "
            "free some space or change the rights, then run the same again"
        ) from error


@final
@dataclass(frozen=True, eq=False)
class Manifest:
    """The finished shards of the run in `folder`, by index, and what they are made by.

    `open_manifest` makes it.
    """

    folder: Path
    recipe: Recipe
    finished: dict[int, ShardRecord]

    @property
    def missing(self) -> list[int]:
        return [index for index in range(self.recipe.shards) if index not in self.finished]

    def add(self, index: int, record: ShardRecord) -> None:
        """Note a finished shard. Raises InputError when the disk refuses; the shard is then made again."""
        self.finished[index] = record
        self.write()

    def write(self) -> None:
        """Replace the manifest. Raises InputError when the disk refuses."""
        records = [self.finished[index] for index in sorted(self.finished)]
        content = {
            "format": FORMAT,
            "recipe": self.recipe.to_dict(),
            "solver": self.recipe.solver,
            "finished": sum(record.count for record in records),
            "complete": not self.missing,
            "shards": [asdict(record) for record in records],
        }
        with writing_to(self.folder), replacing(self.folder / MANIFEST) as part:
            part.write_text(f"{json.dumps(content, indent=1)}\n", encoding="utf-8")

    def sweep(self) -> None:
        """Remove the unfinished files of killed workers. Raises InputError when the disk refuses."""
        with writing_to(self.folder):
            for left in [*self.folder.glob(f".*{PART}"), *self.folder.glob(".shard-*.former-*")]:
                remove(left)


def _is_unfinished(name: str) -> bool:
    return name.endswith(PART) or name.startswith(part_prefix(MANIFEST))


def shard_name(recipe: Recipe, index: int) -> str:
    return f"shard-{index:06d}{FORMATS[recipe.format].suffix}"


@contextmanager
def open_manifest(folder: Path, recipe: Recipe) -> Iterator[Manifest]:
    """The manifest of a new or empty folder, or of a folder with the same run, its shards verified.

    A listed shard that is missing or changed is announced and made again. Raises InputError when the folder cannot be
    written, holds other files, belongs to another run, or is being written by another process.
    """
    with writing_to(folder):
        if not folder.parent.is_dir():
            raise InputError(f"output {folder}: the folder {folder.parent} does not exist; create it first")
        if folder.exists() and not folder.is_dir():
            raise InputError(f"output {folder} is a file; name a new folder")
        folder.mkdir(exist_ok=True)
        if not (folder / MANIFEST).exists() and not all(_is_unfinished(one.name) for one in folder.iterdir()):
            raise InputError(f"output {folder} holds files and no {MANIFEST}; name a new or an empty folder")
    with _sole_writer(folder):
        begun = (folder / MANIFEST).exists()
        manifest = Manifest(folder, recipe, _verified(folder, recipe) if begun else {})
        manifest.sweep()
        manifest.write()
        yield manifest
        manifest.sweep()


@contextmanager
def _sole_writer(folder: Path) -> Iterator[None]:
    """Holds a lock on the folder, where its file system has locks: a second run would remove the parts of the first."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with writing_to(folder):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"another run is writing to {folder}; wait for it, or name another folder") from None
        yield
    finally:
        os.close(descriptor)


def check_recipe(folder: Path, recipe: Recipe) -> list[dict[str, Any]]:
    """The shards that the manifest lists. Raises InputError when it is damaged or of another run."""
    path = folder / MANIFEST
    try:
        with open_regular(path) as file:
            data = read_at_most(file, LARGEST_BYTES)
        content = None if data is None else json.loads(data)
        match content:
            case {"format": format, "recipe": dict(begun), "shards": list(listed)}:
                pass
            case _:
                raise ValueError("expected a format, a recipe and shards")
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        reason = first_line(error)[:120]
        raise InputError(f"'{path}' is damaged ({reason}); remove it to make everything again") from None
    if type(format) is not int or format != FORMAT:
        raise InputError(f"'{path}' has format {shown(format)}, this pfdiff reads {FORMAT}; choose another folder")
    for name, now in recipe.to_dict().items():
        was = begun.get(name)
        if was != now:
            raise InputError(
                f"output '{folder}' was begun with {name} {_short(was)}, this run has {_short(now)}; "
                "go on as it was begun, or choose another folder"
            )
    return listed


def _verified(folder: Path, recipe: Recipe) -> dict[int, ShardRecord]:
    numbers = {shard_name(recipe, index): index for index in range(recipe.shards)}
    finished: dict[int, ShardRecord] = {}
    for plain in check_recipe(folder, recipe):
        try:
            record = ShardRecord(**read_fields("shard", ShardRecord, plain))
            index = numbers[record.name]
            if [type(value) for value in asdict(record).values()] != [str, int, int, int, str, str]:
                raise TypeError
        except (InputError, TypeError, KeyError):
            raise InputError(f"'{folder / MANIFEST}' lists {shown(plain)}, which is no shard of this run") from None
        try:
            found: str | None = digest_of(folder / record.name)[0]
        except OSError:
            found = None
        if found == record.sha256:
            finished[index] = record
        else:
            got = f"has SHA-256 {found:.12}, expected {record.sha256:.12}" if found else "is missing"
            warnings.warn(f"'{folder / record.name}' {got}: it is made again", stacklevel=2)
    return finished


def _short(value: Any) -> str:
    """A hash by its first digits, anything else in at most 60 characters."""
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except RecursionError:
        text = shown(value)
    hexadecimal = len(text) == 64 and not set(text) - set("0123456789abcdef")
    return f"{text:.12}" if hexadecimal else text if len(text) <= 60 else f"{text:.57}..."
