"""A module's digest follows everything its forward computes with; neighbouring files belong to one network alone."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pfdiff.export.network import Network
from pfdiff.export.sources.module_call import Call, Normalised
from pfdiff.export.sources.module_digest import _source, content_digest, digest_name
from pfdiff.export.zoo.fashion import FashionUNet

from ...small.modules import SHAPE, WORDS

NET = """
import torch
{imports}
class Options:
    __slots__ = ("factor",)
    def __init__(self, factor): self.factor = factor
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        {made}
    def forward(self, x, t):
        return {result}
"""
getsource = inspect.getsource
X = torch.ones(1, *SHAPE)


def opened(folder: Path, *, imports: str = "", made: str = "pass", result: str = "x", **neighbours: str) -> Network:
    folder.mkdir(exist_ok=True)
    for name, text in neighbours.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "net.py").write_text(NET.format(imports=imports, made=made, result=result))
    return Network(f"{folder / 'net.py'}:Net", shape=SHAPE, **WORDS)


def factor_of(network: Network) -> float:
    return float(network.evaluate(X, 3.0).mean())


NEIGHBOURS = {
    "a function": ("from helper import scale", "scale(x)", "def scale(x): return x * {}"),
    "a constant": ("from helper import FACTOR", "x * FACTOR", "FACTOR = {}"),
    "a module": ("import helper", "helper.scale(x)", "def scale(x): return x * {}"),
    "a default": ("from helper import scale", "scale(x)", "F = {}\ndef scale(x, by=F): return x * by"),
    "a class": (
        "from helper import Scale",
        "Scale()(x)",
        "class Scale:\n    by = {}\n    __call__ = lambda s, x: x * s.by",
    ),
}


@pytest.mark.parametrize("what", NEIGHBOURS)
def test_a_changed_neighbour_is_another_network(what: str, tmp_path: Path) -> None:
    imports, result, helper = NEIGHBOURS[what]
    first, same, other = (
        opened(tmp_path, imports=imports, result=result, helper=helper.format(by)) for by in ("1.0", "1.0", "3.0")
    )  # same size, same second
    assert [factor_of(one) for one in (first, same, other)] == [1.0, 1.0, 3.0]
    assert first.digest == same.digest != other.digest


@pytest.mark.parametrize("what", NEIGHBOURS)
def test_a_module_of_a_class_that_uses_neighbours(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given as an object: no file is named, the code that it reaches has to do."""
    imports, result, helper = NEIGHBOURS[what]
    monkeypatch.syspath_prepend(str(tmp_path))
    digests = []
    for by in ("1.0", "1.0", "3.0"):
        loaded = opened(tmp_path, imports=imports, result=result, helper=helper.format(by))
        digests.append(Network(loaded._source.module, shape=SHAPE, **WORDS).digest)  # type: ignore[union-attr]
    assert digests[0] == digests[1] != digests[2]


VALUES = {
    "an unregistered tensor": ("self.f = torch.tensor([{}])", "x * self.f"),
    "an array": ("import numpy; self.f = numpy.array([{}])", "x * torch.from_numpy(self.f).float()"),
    "a dictionary": ("self.f = {{'by': {}}}", "x * self.f['by']"),
    "a list of tensors": ("self.f = [torch.tensor({})]", "x * self.f[0]"),
    "an object with slots": ("self.f = Options({})", "x * self.f.factor"),
    "a closure": ("by = {}; self.f = lambda x: x * by", "self.f(x)"),
    "an attribute of a layer": (
        "self.f = torch.nn.Identity(); self.f.by = torch.tensor({})",
        "x * self.f.by",
    ),
    "an unregistered layer": (
        "self.f = [torch.nn.Conv2d(2, 2, 1, bias=False)]; torch.nn.init.dirac_(self.f[0].weight).data.mul_({})",
        "self.f[0](x)",
    ),
}


@pytest.mark.parametrize("what", VALUES)
def test_a_changed_value_is_another_network(what: str, tmp_path: Path) -> None:
    """Of a file that stays the same: the value comes from another one that is only read."""
    made, result = VALUES[what]
    (tmp_path / "by.txt").write_text("1.0")
    made = made.format(f"float(__import__('pathlib').Path({str(tmp_path / 'by.txt')!r}).read_text())")
    first, same = (opened(tmp_path, made=made, result=result) for _ in range(2))
    (tmp_path / "by.txt").write_text("3.0")
    other = opened(tmp_path, made=made, result=result)
    assert [factor_of(one) for one in (first, same, other)] == [1.0, 1.0, 3.0]
    assert first.digest == same.digest != other.digest


def test_the_digest_is_that_of_another_process(tmp_path: Path) -> None:
    """Whose hashes are salted otherwise, and which has loaded other things."""
    network = opened(
        tmp_path,
        imports="from helper import scale",
        made="self.kinds = {'a', 'b', 'c', 'd'}",
        result="scale(x) if 'a' in {'a', 'b', 'c'} else x",
        helper="def scale(x): return x * len({'a', 'b', 'c'})",
    )
    script = (
        "import sys; from pfdiff.export.network import Network\n"
        f"print(Network({str(tmp_path / 'net.py') + ':Net'!r}, shape={SHAPE}, **{WORDS!r}).digest)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == network.digest


def test_two_networks_have_each_their_own_neighbours(tmp_path: Path) -> None:
    what = {"imports": "from layers import FACTOR", "result": "x * FACTOR"}
    one, other = (opened(tmp_path / str(by), layers=f"FACTOR = {by}.0", **what) for by in (2, 5))
    assert (factor_of(one), factor_of(other)) == (2.0, 5.0)
    assert one.digest != other.digest


def test_the_programs_own_module_of_that_name_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = type(sys)("pfdiff_test_layers")
    own.FACTOR = 7.0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, own.__name__, own)
    network = opened(
        tmp_path,
        imports="from pfdiff_test_layers import FACTOR",
        result="x * FACTOR",
        pfdiff_test_layers="FACTOR = 2.0",
    )
    assert factor_of(network) == 2.0
    assert sys.modules[own.__name__] is own


def test_an_import_inside_forward_finds_the_neighbour(tmp_path: Path) -> None:
    lazy = "__import__('pfdiff_test_lazy').FACTOR * x"
    network = opened(tmp_path, imports="import pfdiff_test_lazy", result=lazy, pfdiff_test_lazy="FACTOR = 2.0")
    assert factor_of(network) == 2.0


def test_a_package_beside_is_loaded_anew(tmp_path: Path) -> None:
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / "__init__.py").write_text("from .scale import FACTOR\n")
    factors = []
    for by in ("2.0", "5.0"):
        (tmp_path / "blocks" / "scale.py").write_text(f"FACTOR = {by}\n")
        network = opened(tmp_path, imports="from blocks import FACTOR", result="x * FACTOR")
        factors.append((factor_of(network), network.digest))
    assert [one for one, _ in factors] == [2.0, 5.0]
    assert factors[0][1] != factors[1][1]


def test_classes_of_ours_are_named_without_their_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A move inside the house changes no digest; the shipped network keeps the name that its engines hold."""
    module = Normalised(torch.nn.Linear(2, 2), Call(("x", "t"), 2, None, None))
    sources = {kind: inspect.getsource(kind) for kind in (Normalised, FashionUNet)}
    before, fashion = content_digest(module, b""), Network("fashion").digest
    monkeypatch.setattr(inspect, "getsource", lambda kind: sources.get(kind) or getsource(kind))
    for kind in sources:
        monkeypatch.setattr(kind, "__module__", "pfdiff.export.another.place")
    assert content_digest(module, b"") == before
    assert digest_name(Normalised) == "Normalised"
    assert digest_name(FashionUNet) == "pfdiff.export.zoo.fashion.FashionUNet"
    assert fashion == Network("fashion").digest


def decorated(kind: type) -> type:
    return kind


class Outer:
    @decorated
    @decorated
    class Inner:
        """Nested, decorated, and with brackets over several lines."""

        values = (
            1,
            2,
        )  # and a comment

    if hasattr(Path, "exists"):

        class Conditional(Inner):
            pass


def made() -> type:
    class Local(Outer):
        async def later(self) -> None: ...

    return Local


def test_a_class_is_the_text_that_python_finds() -> None:
    kinds = [Outer, Outer.Inner, Outer.Conditional, made(), Call, Normalised, FashionUNet, torch.nn.Conv2d, Path]
    for kind in kinds:
        assert _source(kind) == inspect.getsource(kind)
    assert _source(int) == "builtins.int"
