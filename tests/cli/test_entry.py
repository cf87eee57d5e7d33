"""cli.py: each command end to end on a tiny network, and bad input: status 2, one line, nothing half-written."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from PIL import Image
from typer.models import OptionInfo

import pfdiff
from pfdiff.cli import app, main
from pfdiff.cli.entry import FILE_OPTIONS
from pfdiff.engine.artifact import read_artifact, write_manifest

from ..small.engine import write_engine

NETWORKS = '''
import torch
from torch import nn

class Tiny(nn.Module):
    """v for images [B, 1, 6, 5]; a label shifts them."""

    def __init__(self, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)
        self.shift = nn.Embedding(4, 1)
        self.scale = scale

    def forward(self, x, t, label):
        return self.scale * (self.convolution(x) + self.shift(label)[:, :, None, None] * t[:, None, None, None] / 1000)

class Bare(Tiny):
    def forward(self, x, t):
        return super().forward(x, t, torch.zeros(x.shape[0], dtype=torch.int64))

def bare():
    return Bare()

def nan():
    return Bare(float("nan"))

def wrong_shape():
    return nn.Sequential()

def no_module():
    return 3

not_callable = 3

def fails():
    raise RuntimeError("my own error")
'''

BUILD = ["--shape", "1x6x5", "--schedule", "linear:1000", "--prediction", "v", "--grid", "uniform", "--batch", "1,4"]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nets.py and tiny.engine (NFE 5 and 8), built by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "nets.py").write_text(NETWORKS)
    assert main(["build", f"{folder}/nets.py:bare", "--nfe", "5,8", *BUILD, "-o", f"{folder}/tiny.engine"]) == 0
    return folder


@pytest.fixture
def work(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of one test: its own copy of what was built."""
    shutil.copytree(built, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What works.
@pytest.mark.parametrize(
    "command", [one.name or getattr(one.callback, "__name__", "") for one in app.registered_commands]
)
def test_every_command_explains_itself_in_80_columns(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"pfdiff {command}" in "".join(lines)
    assert max(map(len, lines)) <= 80


def test_an_engine_that_is_up_to_date_is_left_alone(
    built: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(work / "tiny.engine")
    assert main(["build", f"{built}/nets.py:bare", "--nfe", "5,8", *BUILD, "-o", "tiny.engine"]) == 0
    assert "up to date" in capsys.readouterr().out
    assert content(work / "tiny.engine") == before


@pytest.mark.parametrize("end", ["first", "20", "clean"])
def test_a_program_ends_where_it_is_told(built: Path, work: Path, end: str) -> None:
    words = ["build", f"{built}/nets.py:bare", "--nfe", "5", *BUILD, "--solver", "ddim", "-o", "tiny.engine"]
    assert main([*words, "--end", end]) == 0
    with pfdiff.load("tiny.engine") as engine:
        program = engine.programs[5]
    assert program.end == (20.0 if end == "20" else end)
    expected = pfdiff.compile("ddim", "linear:1000", 5, "uniform", prediction="v", end=program.end)
    np.testing.assert_array_equal(program.table, expected.table)


def test_the_same_seeds_come_out_of_every_kind_of_file(work: Path) -> None:
    for out in ("x.npy", "x.npz", "x.png", "pictures"):
        assert main(["sample", "tiny.engine", "--nfe", "5", "--seeds", "0-4,9", "-o", out]) == 0
    samples = np.load("x.npy")
    assert (samples.shape, samples.dtype) == ((6, 1, 6, 5), np.float32)
    with np.load("x.npz") as held:
        assert (held["samples"] == samples).all()
        assert held["seeds"].tolist() == [0, 1, 2, 3, 4, 9]
    names = [f"{seed:06d}.png" for seed in (0, 1, 2, 3, 4, 9)]
    assert sorted(path.name for path in Path("pictures").iterdir()) == names
    assert main(["sample", "tiny.engine", "--nfe", "5", "--seeds", "9", "-o", "alone.npy"]) == 0
    assert np.abs(np.load("alone.npy")[0] - samples[5]).max() <= 1e-5


@pytest.mark.parametrize("out", ["x.png", "pictures"])
def test_what_is_no_picture_is_refused_before_it_is_drawn(
    work: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], out: str
) -> None:
    write_engine(work / "two.engine", nfe=(4,))
    monkeypatch.setattr(pfdiff.Engine, "images", lambda *_, **__: pytest.fail("drawn"))
    assert main(["sample", "two.engine", "-o", out]) == 2
    assert "no pictures: got samples [2, 3, 5], expected [1|3|4, H, W]" in capfd.readouterr().err
    assert main(["sample", "two.engine", "-o", "x.npy"]) == 0


def test_info_says_what_auto_added_to_samples(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("tiny.engine", "auto.engine")
    artifact = read_artifact(Path("auto.engine"))
    choice = {"chosen": "bf16", "milliseconds": {"bf16": 2.5}, "added": {"bf16": {"5": 0.0042, "8": 0.0035}}}
    known = {**artifact.provenance, "precision_choice": choice}
    write_manifest(replace(artifact, provenance=known), Path("auto.engine"))
    assert main(["info", "auto.engine"]) == 0
    assert re.search(r"added to samples +RMS NFE 5 0.0042, NFE 8 0.0035 *\n", capsys.readouterr().out)


def test_info_says_what_the_engine_holds(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "tiny.engine"]) == 0
    text = capsys.readouterr().out
    for word in ("linear:1000", "[1, 6, 5]", "pfdiff:k=2,l=1", "999 832 582 333 83"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 80
    assert main(["info", "tiny.engine", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert sorted(data["programs"]) == ["5", "8"]
    assert np.asarray(data["programs"]["8"]["table"]).shape == (9, 9)
    assert data["contract"]["shape"] == [1, 6, 5]
    assert main(["info", "tiny.engine", "--nfe", "8"]) == 0
    assert "y_7" in capsys.readouterr().out


def test_bench_prints_and_writes_its_figures(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "tiny.engine", "--nfe", "5", "--batch", "1", "--rounds", "3", "--json", "figures.json"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    data = json.loads(Path("figures.json").read_text())
    assert data["machine"]["cores"] >= 1
    (row,) = data["figures"]
    assert (row["nfe"], row["batch"]) == (5, 1)
    assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] <= row["max_ms"]


def test_bench_prints_rows_as_they_come_small_batches_first(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[tuple[int, int]] = []
    shown: list[str] = []
    bench = pfdiff.Engine.bench

    def noted(engine: pfdiff.Engine, nfe: int, batch: int, rounds: int, seconds: float) -> object:
        shown.append(capsys.readouterr().out)
        timed.append((nfe, batch))
        return bench(engine, nfe, batch, rounds, seconds=seconds)

    monkeypatch.setattr(pfdiff.Engine, "bench", noted)
    assert main(["bench", "tiny.engine", "--rounds", "4", "--seconds", "60", "--backend", "onnxruntime"]) == 0
    assert timed == [(5, 1), (8, 1), (5, 4), (8, 4)]
    printed = "".join([*shown[1:], capsys.readouterr().out]).splitlines()
    rows = [line.split() for line in printed if line.strip()[:1].isdigit()]
    assert [(int(row[0]), int(row[1]), row[2]) for row in rows] == [(*pair, "4") for pair in timed]
    for before, pair in zip(shown[1:], timed, strict=False):  # each row is out before the next one begins
        assert f"{pair[0]:4}  {pair[1]:5}" in before


# Bad input.
def build(network: str = "nets.py:bare", *words: str) -> list[str]:
    return ["build", network, "--nfe", "5", *BUILD, "-o", "new.engine", *words]


def sample(*words: str) -> list[str]:
    return ["sample", "tiny.engine", "--nfe", "5", "-o", "x.png", *words]


BAD: list[tuple[list[str], str]] = [
    # The command line itself.
    (["build"], "Missing argument"),
    (["--nope"], "No such option: --nope"),
    (["info", "tiny.engine", "--nfe", "x"], "got 'x', expected a positive integer"),
    # Networks.
    *((build(name), name) for name in ("missing.onnx", "empty.onnx", "junk.onnx", "truncated.onnx", "nets.py")),
    (build("nets.py:absent"), "absent"),
    (build("nets.py:not_callable"), "not_callable"),
    (build("nets.py:no_module"), "no_module"),
    (build("nets.py:fails"), "my own error"),
    (build("absent.py:bare"), "absent.py"),
    (build("syntax.py:bare"), "syntax.py"),
    (build("nets.py:nan"), "NaN"),
    (build("fashoin"), "fashion"),
    (["build", "nets.py:bare", "--nfe", "5", "-o", "new.engine"], "--schedule linear:1000"),
    (["build", "nets.py:bare", "--nfe", "5", *BUILD[2:], "-o", "new.engine"], "--shape 3x64x64"),
    (build("nets.py:bare", "--shape", "1x6"), "shape"),
    (build("nets.py:bare", "--shape", "3x6x5"), "3"),
    (build("nets.py:bare", "--shape", "1x0x5"), "--shape '1x0x5'"),
    # Programs.
    (build("nets.py:bare", "--nfe", "0"), "--nfe '0'"),
    (build("nets.py:bare", "--nfe", "-5"), "--nfe '-5'"),
    (build("nets.py:bare", "--nfe", "5,,8"), "--nfe '5,,8'"),
    (build("nets.py:bare", "--solver", "dpm-solver:order=2"), "5"),
    (build("nets.py:bare", "--solver", "ddmi"), "unknown solver 'ddmi'; known: ddim"),
    (build("nets.py:bare", "--solver", "pfdiff:k=2,l=3"), "at most k = 2, got 3"),
    (build("nets.py:bare", "--solver", "pfdiff:k=4"), "k of 1, 2 or 3, got 4"),
    (build("nets.py:bare", "--grid", "sideways"), "sideways"),
    (build("nets.py:bare", "--grid", "999,500,0"), "3"),
    (build("nets.py:bare", "--grid", "999,abc"), "--grid '999,abc'"),
    (build("nets.py:bare", "--schedule", "linaer:1000"), "linaer"),
    (build("nets.py:bare", "--schedule", "linear:4"), "4"),
    (build("nets.py:bare", "--prediction", "score"), "score"),
    (build("nets.py:bare", "--basis", "y"), "unknown basis 'y'; known: eps, x0, v"),
    (build("nets.py:bare", "--clip", "-1"), "clip"),
    (build("nets.py:bare", "--end", "frist"), "unknown end 'frist'; expected clean, first or a time"),
    (build("nets.py:bare", "--end", "2000"), "2000"),
    (build("nets.py:bare", "--precision", "fp12"), "fp12"),
    (build("nets.py:bare", "--backend", "tensorflow"), "tensorflow"),
    (build("nets.py:bare", "--batch", "0"), "--batch '0'"),
    (build("nets.py:bare", "-o", "missing/new.engine"), "missing"),
    # Engines.
    (["info", "absent.engine"], "absent.engine"),
    (["info", "nets.py"], "is not a directory"),
    (["info", "."], "engine.json"),
    (["info", "tiny.engine", "--nfe", "7"], "it has 5, 8"),
    (["info", "changed.engine"], "network.onnx"),
    (["info", "broken.engine"], "damaged"),
    (["sample", "changed.engine", "--nfe", "5", "-o", "x.png"], "SHA-256"),
    (["bench", "tiny.engine", "--nfe", "7"], "7"),
    (["bench", "tiny.engine", "--json", "tiny.engine/engine.json"], "write it beside the engine"),
    (["tune", "tiny.engine", "--nfe", "5", "--json", "tiny.engine/engine.json"], "write it beside the engine"),
    # Kernels.
    (["kernels", "-o", "new", "--cc", "sm_90"], "--cc 'sm_90'"),
    (["kernels", "-o", "new", "--cc", "61"], "61"),
    (["kernels", "-o", "tiny.engine", "--cc", "90"], "tiny.engine"),
    (["kernels", "-o", "missing/new", "--cc", "90"], "create it first"),
    # Sampling.
    (["sample", "tiny.engine", "-o", "x.png"], "choose one of 5, 8"),
    (sample("--nfe", "7"), "7"),
    (sample("--seeds", "a"), "'a' is no seed"),
    (sample("--seeds", "5-3"), "runs backwards; write 3-5"),
    (sample("--seeds", "-1"), "is no seed"),
    (sample("--seeds", str(2**64)), "above the largest seed"),
    (sample("--seeds", "0-99999999999"), "more than 1000000 seeds"),
    (sample("-o", "x.jpg"), "expected .png, .mp4, .npy, .npz or a folder"),
    (sample("-o", ".png"), "an ending without a name; expected, for instance, samples.png"),
    (sample("-o", ""), "-o: got '', expected the name of a file or folder"),
    (build("nets.py:bare", "--out="), "--out: got '', expected the name"),
    (build("nets.py:bare", "--prediction", "velocity"), "two meanings: give v for alpha eps - sigma x0, or flow for"),
    (sample("-o", "missing/x.png"), "does not exist; create it first"),
    (sample("-o", "tiny.engine"), "is an engine directory"),
    (sample("-o", "tiny.engine/x.png"), "write it beside the engine"),
    (["export", "tiny.engine", "--nfe", "5", "-o", "tiny.engine/network.onnx"], "write it beside the engine"),
    (["table", "export", "tiny.engine", "--nfe", "5", "-o", "tiny.engine/engine.json"], "write it beside the engine"),
    (
        ["table", "export", "tiny.engine", "--nfe", "5", "--strength", "0.5", "-o", "tiny.engine/engine.json"],
        "write it beside the engine",
    ),
    (["table", "export", "tiny.engine", "--nfe", "5", "--strength-counts", "whole", "-o", "x.json"], "--strength too"),
    (sample("--image", "tiny.engine"), "is no plain file; give a picture"),
    (sample("--image", "eps.png"), "is no picture of PNG, JPEG, WEBP, BMP"),
    (sample("--image", "deep.png"), "pfdiff: --image 'deep.png': pixels of kind I;16, expected 8 bits a channel"),
    (sample("--image", "huge.npy"), "9999999999999"),
    (sample("--image", "grey.png", "--mask", "clear.png"), "'clear.png' is transparent in parts"),
    (sample("--label", "3"), "unknown argument '--label'"),
    (sample("extra"), "unknown argument 'extra'"),
    (sample("--backend", "tensorflow"), "tensorflow"),
    (sample("--threads", "0"), "got '0', expected a positive integer"),
]


@pytest.fixture
def traps(work: Path) -> Path:
    """`work` with broken files beside the good ones."""
    (work / "empty.onnx").write_bytes(b"")
    (work / "junk.onnx").write_bytes(bytes(range(256)) * 8)
    Image.new("L", (5, 6)).save(work / "grey.png")
    Image.new("L", (5, 6)).save(work / "eps.png", "EPS")  # Pillow reads it by a program
    Image.new("I;16", (5, 6)).save(work / "deep.png")
    np.save(work / "huge.npy", np.zeros(3))
    promised = (work / "huge.npy").read_bytes().replace(b"(3,)", b"(9999999999999,)").replace(b" " * 13 + b"\n", b" \n")
    (work / "huge.npy").write_bytes(promised)
    Image.new("RGBA", (5, 6)).save(work / "clear.png")
    network = (work / "tiny.engine" / "network.onnx").read_bytes()
    (work / "truncated.onnx").write_bytes(network[: len(network) // 2])
    (work / "syntax.py").write_text("def bare(:\n")
    shutil.copytree(work / "tiny.engine", work / "changed.engine")
    (work / "changed.engine" / "network.onnx").write_bytes(network[:-1] + bytes([network[-1] ^ 1]))
    shutil.copytree(work / "tiny.engine", work / "broken.engine")
    (work / "broken.engine" / "engine.json").write_text('{"format": 1')
    return work


def test_no_option_of_a_file_takes_an_empty_name() -> None:
    """Which would be the current folder."""
    commands = list(app.registered_commands)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        commands += group.typer_instance.registered_commands
    names: set[Any] = set()
    for one in commands:
        assert one.callback is not None
        for hint in get_type_hints(one.callback, include_extras=True).values():
            kind, *options = get_args(hint) if get_origin(hint) is Annotated else (None,)
            if kind in (Path, Path | None):
                found = [one for one in options if isinstance(one, OptionInfo)]
                names.update(name for one in found for name in (one.default, *(one.param_decls or ())))
    assert names <= set(FILE_OPTIONS)
    assert {"-o", "--out", "--json"} <= names


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(words)[:60] for words, _ in BAD])
def test_bad_input_is_one_line(traps: Path, capfd: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    before = content(traps)
    assert main(words) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert re.fullmatch(r"pfdiff: .+\n", shown.err), shown.err
    assert message in shown.err
    after = {name: data for name, data in content(traps).items() if "__pycache__" not in name}
    assert after == before


@pytest.mark.parametrize(
    ("stop", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "pfdiff: interrupted\n"),
        (OSError(28, "No space left on device"), 2, "No space left on device; nothing was changed"),
    ],
    ids=["interrupted", "disk full"],
)
def test_a_build_that_stops_half_way_leaves_the_former_engine(
    work: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    stop: BaseException,
    status: int,
    line: str,
) -> None:
    before = content(work)

    def half(_: object, folder: Path, *__: object) -> None:
        (folder / "network.onnx").write_bytes(b"half")
        raise stop

    monkeypatch.setattr(pfdiff.Network, "written", half)
    assert main(["build", "nets.py:bare", "--nfe", "6", *BUILD, "-o", "tiny.engine"]) == status
    shown = capfd.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert line in shown.err
    after = {name: data for name, data in content(work).items() if "__pycache__" not in name}
    assert after == before
