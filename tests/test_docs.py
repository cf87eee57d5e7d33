"""README and docs/: their code runs, their command lines parse, and every file that they link or name exists.

The blocks of a page run in their order, in a folder that holds small networks under the names that the pages use; a
block of `python` shares its names with the later ones. What cannot run here says why in a comment before the block,
`<!-- not run: needs an NVIDIA GPU -->`; its command lines are parsed and its calls of `pfdiff` are looked up all the
same.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import typer
from onnx import helper, numpy_helper

import pfdiff
from pfdiff.cli import app, main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OTHERS = [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "bench/NOTES.md")]
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
FOLDERS = ("cli", "bench", "quality", "export", "engine", "kernels", "tests", "docs", ".ci")
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


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `reason`: why it is not run, or None."""

    page: Path
    kind: str
    text: str
    reason: str | None
    line: int

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a `sh` block."""
        words = [shlex.split(part, comments=True) for line in self.text.splitlines() for part in line.split(" && ")]
        return [one for one in words if one]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, one["kind"], one["text"], one["reason"], text.count("\n", 0, one.start()) + 1)
        for one in BLOCK.finditer(text)
    ]


def prose(page: Path) -> str:
    """The page without its blocks."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


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
    monkeypatch.delitem(__import__("sys").modules, "my_models", raising=False)
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
        case ["pip", "install", what]:
            check_extras(what, where)
        case ["pytest", "--pyargs", "pfdiff.bench", option, _]:
            assert f'"{option}"' in (ROOT / "bench" / "options.py").read_text(encoding="utf-8"), f"{where}: {line}"
        case ["build/pfdiff-run", *arguments]:
            usage = (ROOT / "engine" / "native" / "run" / "options.cpp").read_text(encoding="utf-8")
            options = [word for word in arguments if word.startswith("-")]
            assert all(f"{option} " in usage for option in options), f"{where}: {line}"
        case ["cmake", *arguments]:
            text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
            options = [word[2:].partition("=")[0] for word in arguments if word.startswith("-D")]
            assert all(option in text for option in options), f"{where}: {line}"
        case _:
            pytest.fail(f"{where}: '{line}' is no command that this test knows")


def check_extras(what: str, where: str) -> None:
    """`.[a,b]` names extras of pyproject.toml."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    found = re.fullmatch(r"\.(?:\[([\w,]+)\])?", what)
    assert found, f"{where}: pip install {what}: expected . or .[extra]"
    unknown = set((found[1] or "").split(",")) - {"", *extras}
    assert not unknown, f"{where}: no extra {', '.join(unknown)} in pyproject.toml"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_options_in_the_text_exist(page):
    group: Any = typer.main.get_command(app)
    options = {name for command in group.commands.values() for one in command.params for name in one.opts}
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
        check_command(["curl", "x"], "here", run=False)
    missing = [
        span for span, path in named_files("`engine/api.py`, `nothing.py`, `bench/none.py`") if not path.exists()
    ]
    assert missing == ["nothing.py", "bench/none.py"]
    with pytest.raises(Exception, match="--colour"):
        check_command(["pfdiff", "build", "fashion", "--nfe", "8", "--colour", "red"], "here", run=False)
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: needs a GPU -->\n```sh\npfdiff info x && make y  # z\n```\n", encoding="utf-8")
    (found,) = blocks(page)
    assert (found.kind, found.reason, found.line) == ("sh", "needs a GPU", 1)
    assert found.commands == [["pfdiff", "info", "x"], ["make", "y"]]


# Files.
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", one.replace("`", "")).strip().lower().replace(" ", "-") for one in found}


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=name_of)
def test_relative_links_exist(page):
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link}"
        assert target.is_relative_to(ROOT), f"{name_of(page)}: {link} leads out of the repository"
        assert not anchor or anchor in anchors(target), f"{name_of(page)}: {link} has no such heading"


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=name_of)
def test_named_files_exist(page):
    """Every path and every `python -m pfdiff...` in backticks."""
    missing = [span for span, path in named_files(prose(page)) if not path.exists()]
    assert not missing, f"{name_of(page)}: there is no {', '.join(missing)}"


def named_files(text: str) -> Iterator[tuple[str, Path]]:
    """(as it is written, path); `name.py` alone stands beside the last path of its line."""
    for line in text.splitlines():
        folder: Path | None = None
        for span in SPAN.findall(line):
            module = re.fullmatch(r"python -m pfdiff\.([a-z_.]+)(?: .*)?", span)
            if re.fullmatch(rf"({'|'.join(map(re.escape, FOLDERS))})/[\w./-]*", span):
                folder = (ROOT / span).parent
                yield span, ROOT / span
            elif module and not module[1].endswith("."):  # `pfdiff.bench.studies.NAME` is not one
                yield span, ROOT / (module[1].replace(".", "/") + ".py")
            elif folder is not None and re.fullmatch(r"\w+\.(py|cpp|h)", span):
                yield span, folder / span


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=name_of)
def test_pages_are_reached(page):
    """docs/README.md lists every page of docs/."""
    index = ROOT / "docs" / "README.md"
    if page.is_relative_to(ROOT / "docs") and page != index:
        assert page.relative_to(index.parent).as_posix() in LINK.findall(prose(index))


# Numbers.
def test_every_row_of_results_has_a_file():
    """In the README's table every row; in docs/results.md every table or the text since its heading."""
    rows = [row for row in table_rows(ROOT / "README.md") if "bench/results/" in row]
    assert len(rows) == 6
    for section in re.split(r"^#+ ", prose(ROOT / "docs" / "results.md"), flags=re.M)[1:]:
        title, _, body = section.partition("\n")
        inherited = title.startswith(("PFDiff over", "Against", "Past", "Over DPM", "How few"))  # of their section
        assert "../bench/results/" in body or "|" not in body or inherited, f"{title}: no file beside its numbers"


def table_rows(page: Path) -> list[str]:
    return [line for line in prose(page).splitlines() if line.startswith("|")]


def stored(name: str) -> Any:
    return json.loads((ROOT / "bench" / "results" / name).read_text(encoding="utf-8"))


def figures() -> dict[str, str]:
    """The README's six figures, computed from the files beside them: the beginning of a row -> the figure."""
    machine = "amd-epyc-2-cores"
    search = {name: stored(f"{machine}/search_{name}.json")["nfe"]["5"] for name in ("fashion", "mnist")}
    ratios = {name: one["ratios_on_held_out_seeds"]["refined / ddim"] for name, one in search.items()}
    rows = stored("fashion_paper.json")["conditional"]["rows"]
    distance = rows["pfdiff:k=2,l=1@uniform"]["8"]["fd"] / rows["ddim@uniform"]["8"]["fd"]
    whole = [one for one in stored(f"{machine}/fashion_batch1.json")["figures"] if one["nfe"] == 8]
    suite = stored(f"{machine}/0011_dfbf732d8fd6.json")["benchmarks"]
    eager = suite["test_pytorch[fashion-eager-ddim]"]["ratios"]["pfdiff on onnxruntime fp32 / this"]["value"]
    bf16 = suite["test_pytorch[cifar-eager-ddim-bf16]"]["ratios"]["pfdiff on openvino bf16 / this"]["value"]
    return {
        "error at 5 evaluations": f"{ratios['fashion']:.2f}",
        "the same on MNIST": f"{ratios['mnist']:.2f}",
        "Frechet distance at 8": f"{distance:.2f}",
        "time of a whole sample": f"{whole[0]['overhead']:.2f}",
        "times faster than diffusers": f"{1 / eager:.1f}",
        "the same: a 36 M U-Net": f"{1 / bf16:.1f}",
    }


def test_the_figures_of_the_readme_are_those_of_their_files():
    rows = {row.split("|")[1].strip(): row.split("|")[2].strip() for row in table_rows(ROOT / "README.md")}
    for beginning, figure in figures().items():
        (shown,) = [value for what, value in rows.items() if what.startswith(beginning)]
        assert shown == figure, beginning


@pytest.mark.parametrize("network", ["fashion", "mnist"])
def test_the_errors_of_the_search_are_those_of_their_file(network):
    """docs/results.md has every held-out error of search_*.json, to three digits, in the order of the file."""
    (section,) = re.findall(
        rf"from \[search_{network}\.json\].*?\n\n(\|.*?)\n\n", prose(ROOT / "docs" / "results.md"), re.S
    )
    shown = re.findall(r"\| (0\.\d{3}) \|$", section, re.M)
    held = [
        one["held_out_error"]
        for nfe in ("5", "8")
        for one in stored(f"amd-epyc-2-cores/search_{network}.json")["nfe"][nfe]["rows"].values()
    ]
    assert shown == [f"{one:.3f}" for one in held]


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
