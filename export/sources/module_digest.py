"""What a module computes, as bytes: its weights and buffers, and the code and values that its forward may reach.

From the user's own classes and functions the global names are followed that their bytecode mentions, wherever they were
imported from, so that a factor in a neighbouring file counts like one in the class. Bytecode is what will run, whether
or not its file was edited since. Installed packages are not followed: of their classes, and of ours, the source counts.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import linecache
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

OWN = __name__.partition(".")[0]
INSTALLED = {"site-packages", "dist-packages"}  # folders of packages that are not followed
# Where our own classes were when digests named their files. These networks ship with engines built of them, and keep
# the name; every other class of ours is its qualified name alone, so that moving it changes no digest.
SHIPPED = {
    "FashionUNet": "pfdiff.export.zoo.fashion.FashionUNet",
    "Residual": "pfdiff.export.zoo.fashion.Residual",
    "Attention": "pfdiff.export.zoo.fashion.Attention",
}
BARE = frozenset(vars(nn.Module()))  # attributes of every module; what they hold is registered


def content_digest(module: nn.Module, source: bytes) -> bytes:
    """sha256 of `source`, of every weight and buffer, and of the code and the values that the module reaches."""
    content = _Content(source)
    content.module(module)
    return content.digest.digest()


def is_users(module_name: str) -> bool:
    """Whether a Python module of that name is neither installed, nor Python's, nor ours."""
    top = module_name.partition(".")[0]
    file = getattr(sys.modules.get(module_name), "__file__", None) or ""
    return top not in sys.stdlib_module_names | {OWN, "torch"} and not INSTALLED & set(PurePath(file).parts)


def digest_name(kind: Any) -> str:
    """The name under which a class or a function stands in digests: without the module where it is ours."""
    module, name = kind.__module__ or "", kind.__qualname__
    if module.partition(".")[0] == OWN:
        return SHIPPED.get(name) or name
    return f"{module}.{name}"


@final
class _Content:
    """A digest, and what is in it already: each object counts once, so that circles end."""

    def __init__(self, source: bytes) -> None:
        self.digest = hashlib.sha256(source)
        self._seen: dict[int, Any] = {}  # by id; kept, so that no id is used twice

    def note(self, text: str) -> None:
        self.digest.update(text.encode())

    # Modules.
    def module(self, module: nn.Module) -> None:
        for name, tensor in (*sorted(module.named_parameters()), *sorted(module.named_buffers())):
            self.note(f"{name}|")
            self.tensor(tensor)
        self._seen |= {id(one): one for one in module.modules()}
        kinds: set[type] = set()
        for name, one in module.named_modules():
            self.note(f"{name}|{digest_name(type(one))}|{one.extra_repr()}|")
            plain = {key: value for key, value in vars(one).items() if key != "training" and _is_plain(value)}
            self.note(repr(sorted(plain.items())))
            for kind in type(one).__mro__:
                if kind not in kinds and not kind.__module__.startswith("torch."):
                    kinds.add(kind)
                    self.kind(kind)
            if is_users(type(one).__module__) or type(one).__module__.startswith("torch.nn."):
                self.attributes({key: value for key, value in vars(one).items() if key not in (*plain, *BARE)})

    def tensor(self, tensor: Tensor) -> None:
        self.note(f"{tensor.dtype}|{list(tensor.shape)}|")
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        self.digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")

    # Code.
    def kind(self, kind: type) -> None:
        """A class: its source, or of the user's the members, which are what will run."""
        if not is_users(kind.__module__):
            self.note(_source(kind))
            return
        self.note(f"{kind.__qualname__}|")
        for name, member in sorted(vars(kind).items()):
            for held in ("__func__", "fget", "func", "__wrapped__"):  # of static methods, properties, cached ones
                member = getattr(member, held, member)
            if isinstance(member, types.FunctionType) or not name.startswith("__"):
                self.note(f"{name}|")
                self.add(member)

    def function(self, function: types.FunctionType) -> None:
        self.add(function.__defaults__)
        self.add(function.__kwdefaults__)
        for cell in function.__closure__ or ():
            self.add(_content_of(cell))
        self.reach(function.__globals__, frozenset(self.code(function.__code__)), set())

    def code(self, code: types.CodeType) -> Iterator[str]:
        """Notes the bytecode; all names that it and the functions inside it mention."""
        self.digest.update(code.co_code)
        self.note(repr((code.co_names, code.co_varnames)))
        yield from code.co_names
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                yield from self.code(constant)
            else:
                self.add(constant)

    def reach(self, scope: Mapping[str, Any], names: frozenset[str], entered: set[str]) -> None:
        """What `names` mean in a module's globals, and in the user's modules among them: `helper.scale`."""
        for name in sorted(names & scope.keys()):
            value = scope[name]
            if not isinstance(value, types.ModuleType):
                self.note(f"{name}|")
                self.add(value)
            elif is_users(value.__name__) and value.__name__ not in entered:
                entered.add(value.__name__)
                self.reach(vars(value), names, entered)

    # Values.
    def attributes(self, held: Mapping[str, Any]) -> None:
        for name, value in sorted(held.items()):
            self.note(f"{name}|")
            self.add(value)

    def add(self, value: Any) -> None:
        """Any value; of what has no form that is the same in every process, the type alone."""
        if _is_plain(value) or isinstance(value, (bytes, complex, np.generic, torch.dtype)) or value is ...:
            self.note(f"{value!r}|")
            return
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        value = inspect.unwrap(value) if callable(value) else value
        self.note(f"{digest_name(type(value))}|")
        if isinstance(value, Tensor):
            self.tensor(value.to_dense() if value.layout is not torch.strided else value)
        elif isinstance(value, np.ndarray):
            self.add(value.tolist() if value.dtype.hasobject else (str(value.dtype), value.shape, value.tobytes()))
        elif isinstance(value, Mapping):
            for key, one in value.items():
                self.add(key)
                self.add(one)
        elif isinstance(value, (tuple, list)):
            for one in value:
                self.add(one)
        elif isinstance(value, (set, frozenset)):
            self.note(repr(sorted(repr(one) for one in value if _is_plain(one))))  # in no order of their own
        elif isinstance(value, nn.Module):
            self.module(value)
        elif isinstance(value, functools.partial):
            self.add((value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            self.add((value.__func__, value.__self__))
        elif isinstance(value, (types.FunctionType, type)):
            self.note(f"{digest_name(value)}|")
            if is_users(value.__module__ or ""):
                self.kind(value) if isinstance(value, type) else self.function(value)
        elif is_users(type(value).__module__):
            self.kind(type(value))
            slots = {name for kind in type(value).__mro__ for name in vars(kind).get("__slots__", ())}
            self.attributes({**getattr(value, "__dict__", {}), **{n: getattr(value, n, None) for n in slots}})


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (int, float, str, bool))


def _content_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet assigned
        return None


@functools.cache
def _source(kind: type) -> str:
    """The class's text, by its file's tree: Python would parse the whole file for each class of it."""
    try:
        if not hasattr(kind, "__firstlineno__"):  # of Python 3.13, which needs no tree
            file = inspect.getsourcefile(kind)
            lines = linecache.getlines(file, vars(sys.modules[kind.__module__])) if file else []
            first = _first_lines("".join(lines)).get(kind.__qualname__)
            if first is not None:
                return "".join(inspect.getblock(lines[first:]))
        return inspect.getsource(kind)
    except (OSError, TypeError, KeyError, SyntaxError):
        return digest_name(kind)


@functools.lru_cache(maxsize=16)
def _first_lines(text: str) -> dict[str, int]:
    """The index of each class's first line in a file's text, that of its first decorator, by qualified name."""
    found: dict[str, int] = {}

    def walk(node: ast.AST, scope: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                first = child.decorator_list[0].lineno if child.decorator_list else child.lineno
                found.setdefault(f"{scope}{child.name}", first - 1)
                walk(child, f"{scope}{child.name}.")
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                walk(child, f"{scope}{child.name}.<locals>.")
            else:
                walk(child, scope)

    walk(ast.parse(text), "")
    return found
