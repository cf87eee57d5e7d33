"""What "file.py:factory" imports from the file's own folder: loaded anew each time, and known byte by byte.

Two networks may each have a `layers.py`, so no module of the folder is taken from what is loaded already. Afterwards
the program's own modules are back in their places; the others stay, for imports inside forward, until the next file.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import final

from .module_digest import INSTALLED, is_users

_loaded: dict[str, ModuleType] = {}  # what the last file left in sys.modules


@contextlib.contextmanager
def importing_beside(path: Path) -> Iterator[Mapping[str, bytes]]:
    """The file's folder first among the places to import from, as for a script; the sources found there, by name."""
    folder = path.resolve().parent
    for name, module in _loaded.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    _loaded.clear()
    there = {one.stem for one in folder.iterdir()} - {"__main__"}
    aside = {name: one for name, one in sys.modules.items() if name.partition(".")[0] in there and is_users(name)}
    for name in aside:
        del sys.modules[name]
    finder = _Beside(folder)
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    sys.meta_path.insert(0, finder)
    try:
        yield finder.sources
    finally:
        sys.meta_path.remove(finder)
        sys.path.remove(str(folder))
        _loaded.update({name: sys.modules[name] for name in finder.sources.keys() & sys.modules.keys() - aside.keys()})
        sys.modules.update(aside)


@final
class _Beside(MetaPathFinder):
    """Finds what lies in `folder`, and keeps the source of what is loaded from there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sources: dict[str, bytes] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        place = self.folder.joinpath(*fullname.split(".")[:-1])
        if (path is not None and str(place) not in path) or INSTALLED & set(place.parts) or not is_users(fullname):
            return None
        spec = PathFinder.find_spec(fullname, [str(place)])
        if spec is None or not isinstance(spec.loader, SourceFileLoader):
            return None  # a folder without __init__.py may be less than a package installed elsewhere
        spec.loader = _Fresh(fullname, spec.loader.path, self.sources)
        return spec


@final
class _Fresh(SourceFileLoader):
    """Compiles the file itself: Python's cache would miss an edit within the same second."""

    def __init__(self, fullname: str, path: str, sources: dict[str, bytes]) -> None:
        super().__init__(fullname, path)
        self._sources = sources

    def get_code(self, fullname: str) -> CodeType:
        source = self._sources[fullname] = self.get_data(self.path)
        return self.source_to_code(source, self.path)
