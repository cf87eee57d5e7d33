"""README and docs/: their code runs, and their command lines and calls are right.

The blocks of a page run in their order, in a folder that holds small networks under the names that the pages use; a
block of `python` shares its names with the later ones. What cannot run here says why in a comment before the block,
`<!-- not run: needs an NVIDIA GPU -->`; its command lines are parsed and its calls of `pfdiff` are looked up all the
same.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import typer
from onnx import helper, numpy_helper

import pfdiff
from pfdiff.cli import app, main

from .pages import PAGES, ROOT, SPAN, Block, blocks, name_of, prose

NEEDS = {"diffusers": "diffusers", "pfdiff evaluate": "torchmetrics", "pfdiff.evaluate": "torchmetrics"}

MODELS = '''
"""Small networks under the names that the pages use."""

import torch
from torch import nn


class FashionUNet(nn.Module):
    """In place of the shipped network: v for [B, 1, 28, 28], ten labels and none."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.shift = nn.Conv2d(1, 1, 3, padding=1), nn.Embedding(11, 1)

    def load_state_dict(self, *given, **options):
        """The shipped weights are not these."""

    def forward(self, x, t, label):
        time = t.to(x.dtype)[:, None, None, None] / 1000
        return 0.3 * self.convolution(x) + 0.1 * self.shift(label)[:, :, None, None] * time


class Labelled(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Embedding(10, 1)

    def forward(self, x, t, label):
        return 0.1 * x + self.shift(label)[:, :, None, None] + 0 * t[:, None, None, None]


class Transformer(nn.Module):
    def forward(self, hidden_states, encoder_hidden_states, timestep, return_dict=True):
        shift = encoder_hidden_states.mean((1, 2)) + timestep / 1000
        out = 0.1 * hidden_states + shift[:, None, None, None]
        return {"sample": out} if return_dict else (out,)


class Flow(nn.Module):
    def forward(self, x, t):
        return -x * t[:, None]


class Latent(nn.Module):
    def forward(self, x, t):
        return 0.1 * x + t[:, None, None, None] / 1000


class Upsample(nn.Module):
    def forward(self, latents):
        return torch.repeat_interleave(torch.repeat_interleave(latents[:, :3], 2, 2), 2, 3)


load_transformer, load_flow, load_latent, load_decoder = Transformer, Flow, Latent, Upsample
unet = Latent
'''


# The small networks.
@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with unet.onnx, nets.py, my_models.py and fashion.engine, all of small networks."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("my_models.py", "nets.py"):
        (folder / name).write_text(MODELS, encoding="utf-8")
    onnx.save(small_onnx(), folder / "unet.onnx")
    spec = importlib.util.spec_from_file_location("small_fashion", folder / "my_models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pfdiff.export.zoo.fashion.FashionUNet", module.FashionUNet)
        pfdiff.build("fashion", nfe=[5, 8], batch=[1, 8], out=folder / "fashion.engine").close()
        yield folder


def small_onnx() -> onnx.ModelProto:
    """eps = x / 2 + t / 10,000 for x [B, 3, 64, 64]."""
    tensor, float32 = helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Reshape", ["t", "column"], ["times"]),
        helper.make_node("Mul", ["times", "small"], ["shift"]),
        helper.make_node("Mul", ["x", "half"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["eps"]),
    ]
    values = {
        "column": np.array([-1, 1, 1, 1]),
        "small": np.array([1e-4], np.float32),
        "half": np.array([0.5], np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "unet",
        [tensor("x", float32, ["batch", 3, 64, 64]), tensor("t", float32, ["batch"])],
        [tensor("eps", float32, ["batch", 3, 64, 64])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


# What a reader types.
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name_of)
def test_the_blocks_run(page, models, tmp_path, monkeypatch):
    folder = shutil.copytree(models, tmp_path / "reader")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    names: dict[str, Any] = {"__name__": "__page__"}
    for block in blocks(page):
        where = f"{name_of(page)}:{block.line}"
        for used, library in NEEDS.items():
            if used in block.text and block.reason is None:
                pytest.importorskip(library, reason=f"{where} needs {library}")
        if block.kind == "python":
            code = compile(block.text, where, "exec")
            check_calls(block, where)
            if block.reason is None:
                exec(code, names)
        elif block.kind == "sh":
            for words in block.commands:
                check_command(words, where, run=block.reason is None)
        else:
            assert block.kind == "text", f"{where}: a block of {block.kind or 'nothing'}; expected python, sh or text"


def check_calls(block: Block, where: str) -> None:
    """Every `pfdiff.name(...)` is public and has the keywords that it is given."""
    for call in (node for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.Call)):
        called = re.fullmatch(r"pfdiff\.(\w+)((?:\.\w+)*)", ast.unparse(call.func))
        if called is None:
            continue
        assert called[1] in pfdiff.__all__, f"{where}: pfdiff.{called[1]} is not public"
        if not called[2]:
            known = inspect.signature(getattr(pfdiff, called[1])).parameters
            unknown = {one.arg for one in call.keywords if one.arg} - known.keys()
            assert not unknown, f"{where}: pfdiff.{called[1]} has no {', '.join(unknown)}"


def check_command(words: list[str], where: str, *, run: bool) -> None:
    """Run `pfdiff ...` in this process; of other commands look up what they name."""
    line = " ".join(words)
    match words:
        case ["pfdiff", *arguments] if run:
            assert main(arguments) == 0, f"{where}: {line}"
        case ["pfdiff", name, *arguments]:
            group: Any = typer.main.get_command(app)
            group.commands[name].make_context(name, arguments)  # raises what the command line would say
        case ["make", target]:
            assert re.search(rf"^\.PHONY:.*\b{target}\b", (ROOT / "Makefile").read_text(), re.M), f"{where}: {line}"
        case ["pip", "install", "uv"]:
            assert "install uv" in (ROOT / "Makefile").read_text(encoding="utf-8"), where
        case ["uv", "pip", "install", "--torch-backend", "cpu", "-c", file, "torch"]:
            assert re.search(r"^torch==", (ROOT / file).read_text(encoding="utf-8"), re.M), where
        case ["pip", "install", "-c", file, what]:
            assert (ROOT / file).is_file(), where
            check_extras(what, where)
        case ["pip", "install", what]:
            check_extras(what, where)
        case ["pytest", "--pyargs", "pfdiff.bench", *options]:
            known = (ROOT / "bench" / "options.py").read_text(encoding="utf-8")
            assert all(f'"{option}"' in known for option in options[::2]), f"{where}: {line}"
        case ["build/pfdiff-run", *arguments]:
            usage = (ROOT / "engine" / "native" / "run" / "options.cpp").read_text(encoding="utf-8")
            options = [word for word in arguments if word.startswith("-")]
            assert all(f"{option} " in usage for option in options), f"{where}: {line}"
        case ["cmake", *arguments]:
            text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
            options = [word[2:].partition("=")[0] for word in arguments if word.startswith("-D")]
            assert all(option in text for option in options), f"{where}: {line}"
        case ["curl", address, *options]:
            assert address.endswith("/v1/samples"), f"{where}: {line}"
            schema = pytest.importorskip("pfdiff.serving.routes.schema", reason="pip install 'pfdiff[serve]'")
            schema.SamplesBody.model_validate_json(options[options.index("-d") + 1])
        case ["docker", "build" | "run", *_]:
            assert (ROOT / "Dockerfile").is_file(), f"{where}: {line}"
        case _:
            pytest.fail(f"{where}: '{line}' is no command that this test knows")


def check_extras(what: str, where: str) -> None:
    """`.[a,b]` names extras of pyproject.toml."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    found = re.fullmatch(r"\.(?:\[([\w,-]+)\])?", what)
    assert found, f"{where}: pip install {what}: expected . or .[extra]"
    unknown = set((found[1] or "").split(",")) - {"", *extras}
    assert not unknown, f"{where}: no extra {', '.join(unknown)} in pyproject.toml"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_options_in_the_text_exist(page):
    group: Any = typer.main.get_command(app)
    commands = list(group.commands.values())
    commands += [inner for command in commands for inner in getattr(command, "commands", {}).values()]  # table export
    options = {name for command in commands for one in command.params for name in one.opts}
    options |= {"--help", "--version", "--label", "--embedding", "--plan"}  # of each command, of a network, of C++
    for span in SPAN.findall(prose(page)):
        words = span.replace("\\|", "|").split()
        if words[0] == "pip":
            check_extras(" ".join(words[2:]).strip("'"), name_of(page))
        if words[0].startswith("'.["):
            check_extras(words[0].strip("'"), name_of(page))
        if words[0] == "pfdiff" and len(words) > 1 and words[1] not in ("COMMAND", "--version"):
            assert words[1] in group.commands, f"{name_of(page)}: {span}"
        if words[0] in ("pfdiff", "make", "tune", "compare") or words[0].startswith("--"):
            given = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert given <= options, f"{name_of(page)}: {span}"


def test_this_test_refuses_what_is_wrong(tmp_path):
    """What a page may not say is noticed."""
    with pytest.raises(AssertionError, match="is not public"):
        check_calls(Block(ROOT, "python", "pfdiff.sampler()", None, 1), "here")
    with pytest.raises(AssertionError, match="has no colour"):
        check_calls(Block(ROOT, "python", "pfdiff.build(network, nfe=8, colour=1)", "needs a GPU", 1), "here")
    with pytest.raises(AssertionError, match="no extra"):
        check_extras(".[everything]", "here")
    with pytest.raises(pytest.fail.Exception, match="no command"):
        check_command(["wget", "x"], "here", run=False)
    with pytest.raises(Exception, match="--colour"):
        check_command(["pfdiff", "build", "fashion", "--nfe", "8", "--colour", "red"], "here", run=False)
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: needs a GPU -->\n```sh\npfdiff info x && make y  # z\n```\n", encoding="utf-8")
    (found,) = blocks(page)
    assert (found.kind, found.reason, found.line) == ("sh", "needs a GPU", 1)
    assert found.commands == [["pfdiff", "info", "x"], ["make", "y"]]
