"""Imports inside the package run one way, by rooms; what a wheel would lack is noticed here."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each may import those to its right. Every file below a folder counts as the folder.
FOLDERS = ("cli", "serving", "bench", "quality", "export", "engine", "kernels")
# Inside `engine`, likewise; rooms of one group do not import each other.
ROOMS = (
    ("bulk", "control"),
    ("api",),
    ("runtime",),
    ("backends",),
    ("plans",),
    ("artifact",),
    ("contract", "cache", "device"),
    ("compiler", "atomic"),
    ("files",),
    ("json_fields", "philox"),
    ("streams", "tensors", "machine", "progress", "errors", "version", "notebook", "old_leftovers"),
)


def python_files() -> list[Path]:
    parts = ("__init__.py", "__main__.py", *(f"{folder}/**/*.py" for folder in FOLDERS))
    return sorted(path.relative_to(ROOT) for part in parts for path in ROOT.glob(part))


def relative_imports(file: Path) -> Iterator[tuple[str, ...]]:
    """The parts of each module that `file` imports relatively, from the package's root; functions included."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = file.parent.parts[: len(file.parent.parts) - node.level + 1]
            named = (*base, *(node.module or "").split("."))
            yield from [tuple(filter(None, named))] if node.module else [(*base, name.name) for name in node.names]


def room(parts: tuple[str, ...]) -> int:
    """Which group of `ROOMS` a module in `engine` belongs to."""
    name = parts[1].removesuffix(".py")
    return next(number for number, group in enumerate(ROOMS) if name in group)


def is_allowed(file: Path, imported: tuple[str, ...]) -> bool:
    source = file.parts
    if len(source) == 1:
        return True  # the package's own two files hand everything on
    if not imported or imported[0] not in FOLDERS:
        return source[0] in ("cli", "bench")  # the root as its users see it
    if source[:2] == ("quality", "pictures") and imported[:2] != source[:2]:
        return imported[0] == "engine"
    if source[0] == "serving" and imported[0] != "serving":
        return imported[0] == "engine" or imported[:2] == ("quality", "pictures")
    if source[0] != imported[0]:
        return FOLDERS.index(source[0]) < FOLDERS.index(imported[0])
    if source[0] != "engine" or source[1].removesuffix(".py") == imported[1]:
        return True
    return room(source) < room(imported)


def test_imports_run_one_way() -> None:
    arrows = {(str(file), ".".join(parts)) for file in python_files() for parts in relative_imports(file)}
    assert len(arrows) > 500  # they are found
    backwards = {
        (file, module) for file, module in arrows if not is_allowed(Path(file), tuple(filter(None, module.split("."))))
    }
    assert not backwards


@pytest.mark.parametrize(
    ("file", "imported", "allowed"),
    [
        ("engine/bulk/recipe.py", "engine.artifact", True),
        ("engine/artifact.py", "engine.bulk.recipe", False),
        ("engine/contract/contract.py", "engine.artifact", False),
        ("engine/api.py", "export.build", False),
        ("export/build.py", "quality.tune", False),
        ("export/build.py", "", False),
        ("quality/pictures/write.py", "export.network", False),
        ("cli/entry.py", "", True),
        ("serving/routes/answers.py", "quality.pictures", True),
        ("serving/worker.py", "quality.tune", False),
        ("kernels/step.py", "engine.errors", False),
    ],
)
def test_an_arrow_back_is_seen(file: str, imported: str, allowed: bool) -> None:
    assert is_allowed(Path(file), tuple(filter(None, imported.split(".")))) is allowed


def test_every_file_of_the_engine_has_a_room() -> None:
    known = {name for group in ROOMS for name in group}
    found = {path.stem for path in (ROOT / "engine").glob("*.py")} | {
        path.parent.name for path in (ROOT / "engine").glob("*/__init__.py")
    }
    assert found - {"__init__"} <= known


def test_the_compiler_knows_neither_torch_nor_onnx() -> None:
    for path in sorted((ROOT / "engine" / "compiler").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            roots = {name.split(".")[0] for name in names}
            assert not {root for root in roots if root.startswith(("torch", "onnx"))}, path


def test_every_folder_with_python_in_it_is_a_package() -> None:
    """An editable installation hides a folder that a wheel would lack."""
    declared = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(("pfdiff", *file.parent.parts)) for file in python_files()}
    assert declared == found
    assert all((ROOT / Path(*name.split(".")[1:]) / "__init__.py").is_file() for name in declared)
