"""Arguments are checked before torch is loaded; conditions come from files; what was typed is what a message names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import pfdiff
from pfdiff.cli import main
from pfdiff.cli.arguments.conditions import check_in_turn, given_conditions
from pfdiff.cli.arguments.typed import as_typed
from pfdiff.engine.artifact import read_artifact
from pfdiff.engine.contract.condition import Condition
from pfdiff.engine.contract.contract import Contract

from ..small.engine import write_engine

# One condition with a name of its own, labels, and an embedding with an alias, as diffusers' networks have.
CONTRACT = Contract(
    name="small",
    shape=(1, 4, 4),
    schedule="linear:1000",
    prediction="eps",
    conditions=(
        Condition("label", "int64", default=0, low=0, high=9, labels=tuple("abcdefghij")),
        Condition("encoder_hidden_states", "float32", (2, 3), alias="prompt_embeds"),
    ),
)
TEXT = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_engine(tmp_path / "small.engine", nfe=(4, 6))
    return tmp_path / "small.engine"


# Before torch.
SAMPLE = ["sample", "small.engine", "--nfe", "4", "-o", "x.npy"]
PICTURE = [*SAMPLE, "--image"]
EARLY: list[tuple[list[str], str]] = [
    (["sample", "small.engine", "-o", "x.npy"], "--nfe is missing and this engine has several; choose one of 4, 6"),
    (["sample", "small.engine", "--nfe", "5", "-o", "x.npy"], "--nfe 5, this engine has 4, 6"),
    (["sample", "small.engine", "--nfe", "4", "--label", "bags", "-o", "x.npy"], "--label 'bags'"),
    (["sample", "small.engine", "--nfe", "4", "-o", "x.png"], "no pictures"),
    (["sample", "small.engine", "--nfe", "4", "--device", "gpu", "-o", "x.npy"], "device 'gpu', expected auto"),
    (["sample", "small.engine", "--nfe", "4", "--backend", "trt", "-o", "x.npy"], "backend 'trt'"),
    (["sample", "small.engine", "--nfe", "4", "-o", "/proc/x.npy"], "/proc/x.npy"),
    (["sample", "small.engine", "--nfe", "4", "-o", "x.npy", "--label", "2.5"], "--label: got fractions"),
    (["sample", "small.engine", "--nfe", "4", "-o", "x.npy", "--label=11"], "--label: got 11, expected values in 0..9"),
    (
        ["sample", "small.engine", "--nfe", "4", "-o", "x.npy", "--prompt", "a cat"],
        "--prompt: this engine holds",
    ),
    (["sample", "small.engine", "--nfe", "4", "-o", "x.npy", "--strength", "0.5"], "--strength without a picture"),
    (
        ["sample", "small.engine", "--nfe", "4", "-o", "x.npy", "--strength-counts", "whole"],
        "--strength-counts w",
    ),
    ([*PICTURE, "wide.png"], "--image: got uint8 [4, 5, 1], expected uint8 [16, 3, 5, 2] or floats [16, 2, 3, 5]"),
    ([*PICTURE, "nan.npy"], "--image has NaN or infinite values"),
    ([*PICTURE, "text.npy"], "--image 'text.npy' is damaged"),
    ([*PICTURE, "fit.npy", "--mask", "wide.png"], "--mask: got uint8 [4, 5], expected [3, 5]"),
    ([*PICTURE, "fit.npy", "--mask", "nan-mask.npy"], "--mask has values outside 0 to 1"),
    ([*PICTURE, "fit.npy", "--mask", "text.npy"], "--mask 'text.npy' is damaged"),
    ([*SAMPLE, "--label", "3", "--label", "4"], "--label is given twice"),
    ([*SAMPLE, "--lable", "3"], "did you mean --label?"),
    ([*SAMPLE, "--backend", "openvin"], "did you mean openvino?"),
    (["compare", "small.engine", "--nfe", "4", "-o", "plot.jpg"], "ends in '.jpg'"),
    (["compare", "small.engine", "--nfe", "4", "--csv", "/proc/x.csv"], "cannot write /proc/x.csv"),
    (["generate", "small.engine", "--nfe", "5", "--count", "9", "-o", "run"], "this engine has 4, 6"),
    (["bench", "small.engine", "--nfe", "5"], "this engine has 4, 6"),
    (["export", "small.engine", "--nfe", "5", "-o", "x.onnx"], "this engine has 4, 6"),
    (["evaluate", "small.engine", "--nfe", "5", "--reference", "x", "--features", "y"], "this engine has 4, 6"),
    (["tune", "small.engine", "--nfe", "4", "--lable", "3"], "unknown argument '--lable'"),
    (["compare", "small.engine", "--nfe", "4", "--clip", "x"], "--clip 'x': expected a number"),
    (["build", "net.py:f", "--nfe", "4", "--schedule", "linaer:9"], "unknown schedule"),
    (["build", "net.py:f", "--nfe", "4", "--solver", "ddmi"], "unknown solver 'ddmi'"),
    (["build", "net.py:f", "--nfe", "4", "--solver", "eulr"], "did you mean euler?"),
    (["build", "net.py:f", "--nfe", "4", "--schedule", "lineer:9"], "did you mean linear?"),
    (["build", "net.py:f", "--nfe", "4", "--data-range", "1,0"], "the smaller number first"),
]
NOTHING_LOADED = """import json, sys
from pfdiff.cli import main
statuses = [main(words) for words in json.loads(sys.argv[1])]
print(statuses, sorted({"torch", "onnx", "onnxruntime", "openvino"} & set(sys.modules)))"""


def test_bad_arguments_are_refused_without_loading_a_library(engine: Path) -> None:
    """All in one process, in which torch would stay."""
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(engine.parent / "wide.png")
    for name, value in {"fit.npy": 0, "nan.npy": np.nan}.items():
        np.save(engine.parent / name, np.full((2, 3, 5), value, np.float32))
    np.save(engine.parent / "nan-mask.npy", np.full((3, 5), np.nan, np.float32))
    (engine.parent / "text.npy").write_text("text")
    words = json.dumps([words for words, _ in EARLY])
    code = [sys.executable, "-c", NOTHING_LOADED, words]
    done = subprocess.run(code, capture_output=True, text=True, cwd=engine.parent, check=True)
    assert done.stdout == f"{[2] * len(EARLY)} []\n"
    lines = done.stderr.splitlines()
    assert len(lines) == len(EARLY)
    for (_, message), line in zip(EARLY, lines, strict=True):
        assert message in line


def test_python_words_become_what_is_typed() -> None:
    for message, typed in (
        ("give schedule= (--schedule linear:1000)", "give --schedule linear:1000"),
        ("describe it: conditions={'y': ...} (--condition y:dtype:shape)", "describe it: --condition y:dtype:shape"),
        ("give schedule='edm' and prediction='x0'", "give --schedule edm and --prediction x0"),
        ("correct shape=, output= or learned_sigma=", "correct --shape, --output or --learned-sigma"),
        ("contract: time_scale -1.0, expected", "--time-scale -1.0, expected"),
        ("check the weights and the time_scale", "check the weights and the --time-scale"),
        ("nfe=5, this engine has 4", "--nfe 5, this engine has 4"),
        ("unknown solver 'nfe=3'; known: ddim (for example pfdiff:k=2,l=1)",) * 2,
        ("'time=net' at time 0, batch 1",) * 2,
    ):
        assert as_typed(message) == typed


def test_a_picture_for_each_seed_is_given_to_its_own_batch(engine: Path) -> None:
    """Of an engine of batch 8, nine pictures for nine seeds."""
    pictures = np.random.default_rng(0).standard_normal((9, 2, 3, 5)).astype(np.float32)
    masks = np.random.default_rng(1).integers(0, 2, (9, 3, 5)).astype(np.float32)
    np.save("pictures.npy", pictures)
    np.save("masks.npy", masks)
    words = ["--image", "pictures.npy", "--mask", "masks.npy", "--seeds", "0-8"]
    assert main([*SAMPLE, "--strength", "0.5", *words]) == 0
    with pfdiff.load(engine) as loaded:
        assert max(loaded.batch) < 9
        for seed in (0, 7, 8):
            given = {"image": pictures[seed], "mask": masks[seed], "strength": 0.5}
            alone = loaded.sample(seeds=[seed], nfe=4, **given)
            np.testing.assert_array_equal(np.load("x.npy")[seed], alone[0].numpy())


# Conditions.
def test_tensor_conditions_come_from_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", TEXT)
    np.savez(tmp_path / "b.npz", prompt_embeds=TEXT, pooled=TEXT + 1)
    np.savez(tmp_path / "c.npz", anything=TEXT)
    save_file(
        {"encoder_hidden_states": torch.from_numpy(TEXT).bfloat16(), "x": torch.zeros(1)}, tmp_path / "d.safetensors"
    )
    for file in ("a.npy", "b.npz", "c.npz", "d.safetensors"):
        for name in ("--prompt_embeds", "--prompt-embeds", "--encoder_hidden_states"):
            for text in (f"{tmp_path}/{file}", f"@{tmp_path}/{file}"):
                (found,) = given_conditions([name, text], CONTRACT).values()
                np.testing.assert_array_equal(found, TEXT)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt_embeds", "3,x"], "--prompt_embeds 'x': expected a number (float32), or a file (.npy, .npz"),
        (["--prompt_embeds", "gone.npy"], "--prompt_embeds: cannot read 'gone.npy': No such file"),
        (["--prompt_embeds=two.npz"], "--prompt_embeds: 'two.npz' holds x, y; expected prompt_embeds"),
        (["--label", "bags"], "--label 'bags': expected one of a, b, c"),
        (["--prompt_embeds", "x.npy", "--encoder_hidden_states", "x.npy"], "is given twice"),
        (["--label"], "--label: a value is missing"),
    ],
)
def test_a_bad_condition_is_named_as_it_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("two.npz", x=TEXT, y=TEXT)
    np.save("x.npy", TEXT)
    with pytest.raises(pfdiff.InputError) as caught:
        given_conditions(words, CONTRACT)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["prompt_embeds", "encoder_hidden_states"])
def test_values_in_turn_are_checked_by_the_option_that_was_typed(name: str) -> None:
    for value, message in ((np.zeros((4, 3, 3)), "got shape"), (np.zeros((0, 2, 3)), "got no values")):
        with pytest.raises(pfdiff.InputError, match=rf"^--{name}: {message}"):
            check_in_turn({name: value, "label": 1}, CONTRACT)
    with pytest.raises(pfdiff.InputError, match=r"^--prompt_embeds is missing; give --prompt_embeds float32 \[2, 3\]"):
        check_in_turn({"label": 1}, CONTRACT)
    check_in_turn({"label": 1}, CONTRACT, ["encoder_hidden_states"])
    check_in_turn({name: np.zeros((3, 2, 3)), "label": [1, 2]}, CONTRACT)


@pytest.mark.parametrize("name", ["prompt_embeds", "encoder_hidden_states"])
def test_messages_use_the_name_that_the_caller_used(name: str) -> None:
    for value, message in (
        (np.zeros((3, 3)), "got shape"),
        (np.full((2, 3), np.nan), "got NaN"),
        ([[1, 2], [3]], "got lists of unequal lengths"),
    ):
        with pytest.raises(pfdiff.InputError, match=rf"condition '{name}': {message}"):
            CONTRACT.values({name: value, "label": 1}, 4)
    with pytest.raises(pfdiff.InputError, match="condition 'prompt_embeds' is missing; give prompt_embeds="):
        CONTRACT.values({}, 4)


def test_every_command_takes_a_file(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A label in a file is the label itself: the same samples, the same errors."""
    np.save("label.npy", np.array(3))
    save_file({"label": torch.tensor(3)}, "label.safetensors")
    for file in ("3", "label.npy", "label.safetensors"):
        assert (
            main(["sample", "small.engine", "--nfe", "4", "--label", file, "--seeds", "0-2", "-o", f"{file}.npy"]) == 0
        )
    expected = np.load("3.npy")
    for file in ("label.npy", "label.safetensors"):
        np.testing.assert_array_equal(np.load(f"{file}.npy"), expected)
    for file in ("3", "label.npy"):
        words = ["generate", "small.engine", "--nfe", "4", "--count", "3", "--format", "npz", "--label", file]
        assert main([*words, "-o", f"run-{file}"]) == 0
    one, other = (next(Path(f"run-{file}").glob("*.npz")).read_bytes() for file in ("3", "label.npy"))
    assert one == other
    capsys.readouterr()
    quick = ["--nfe", "4", "--solver", "ddim", "--reference", "20", "--calibration", "2"]
    shown = []
    for file in ("3", "label.npy"):
        assert main(["compare", "small.engine", *quick, "--seeds", "2", "--label", file]) == 0
        assert main(["tune", "small.engine", *quick, "--held-out", "0", "--label", file]) == 0
        lines = capsys.readouterr().out.splitlines()
        shown.append([line for line in lines if "ddim" in line and "evaluations" not in line])
    assert shown[0] == shown[1]


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "--count", "2", "-o", "x"],
        ["tune"],
        ["compare"],
        ["evaluate", "--reference", "x.npy", "--features", "fashion"],
    ],
    ids=lambda words: words[0],
)
def test_every_command_names_the_option(engine: Path, capfd: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main([words[0], "small.engine", *words[1:], "--nfe", "4", "--label", "1.5"]) == 2
    assert capfd.readouterr().err.startswith("pfdiff: --label: got fractions, expected integers (int64)")


# Sizes and texts that nobody means.
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", "small.engine", "--nfe", "4", "-o", "x.npy", "--seeds", "9" * 5000], "above the largest seed"),
        (
            ["sample", "small.engine", "--nfe", "4", "-o", "x.npy", "--seeds", "0-" + "9" * 5000],
            "above the largest seed",
        ),
        (["sample", "small.engine", "--nfe", "9" * 5000, "-o", "x.npy"], "expected a positive integer"),
        (["generate", "small.engine", "--count", "2", "--first", "9" * 5000, "-o", "x"], "expected an integer"),
        (["sample", "small.engine", "--nfe", "4", "-o", "x.npy", "--label", "9" * 5000], "--label: got"),
        (
            ["sample", "small.engine", "--nfe", "4", "-o", "x.npy", "--label", "1,2,3"],
            "--label: 3 values for 16 seeds; give 1 or 16",
        ),
        (["build", "n.py:f", "--nfe", "4", "--condition", "x:int64=1" + "0" * 400], "condition 'x:int64=100"),
        (
            ["build", "n.py:f", "--nfe", "4", "--condition", "x:int64=" + "1" * 100],
            "condition 'x': got an integer of 330 bits",
        ),
        (["build", "n.py:f", "--nfe", "9" * 5000], "expected positive integers"),
        (["build", "n.py:f", "--nfe", "4", "--shape", "9" * 5000], "expected one sample's positive sizes"),
        (["build", "n.py:f", "--nfe", "4", "--batch", "9" * 5000], "expected positive integers"),
    ],
    ids=lambda one: " ".join(one)[:60] if isinstance(one, list) else "",
)
def test_numbers_of_thousands_of_digits_are_one_short_line(
    engine: Path, capfd: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    Path("n.py").write_text("def f(): ...")
    assert main(words) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert len(error) < 300


# The data's range.
def test_clip_follows_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def forward(self, x, t):\n        return 0.1 * x\n\n\n"
        "def load():\n    return Net()\n"
    )
    words = ["build", "net.py:load", "--shape", "1x2x2", "--schedule", "linear:1000", "--prediction", "epsilon"]
    words += ["--solver", "ddim", "--nfe", "4", "--data-range=-3,2"]
    clips = {}
    for clip in ("data", "1", "5"):
        assert main([*words, "--clip", clip, "-o", f"{clip}.engine"]) == 0
        error = capfd.readouterr().err
        assert ("--clip 1 cuts data in -3..2; --clip data does not" in error) == (clip == "1")
        artifact = read_artifact(f"{clip}.engine")
        assert artifact.contract.data_range == (-3.0, 2.0)
        assert artifact.contract.prediction == "eps"
        clips[clip] = artifact.programs[4].clip
    assert clips == {"data": 3.0, "1": 1.0, "5": 5.0}


def test_a_time_map_is_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow network whose time runs from noise to data gives the samples of its twin that runs the other way."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self, turned):\n"
        "        super().__init__()\n        self.turned = turned\n\n    def forward(self, x, t):\n"
        "        t = t[:, None, None, None]\n        t = 1 - t if self.turned else t\n        v = x * (0.3 + t)\n"
        "        return -v if self.turned else v\n\n\ndef plain():\n    return Net(False)\n\n\n"
        "def turned():\n    return Net(True)\n"
    )
    words = ["--shape", "1x2x2", "--schedule", "flow", "--prediction", "flow", "--solver", "ddim", "--nfe", "4"]
    words += ["--grid", "uniform"]
    assert main(["build", "net.py:plain", *words, "-o", "plain.engine"]) == 0
    assert main(["build", "net.py:turned", *words, "--time-map", "1-t", "-o", "turned.engine"]) == 0
    for name in ("plain", "turned"):
        assert main(["sample", f"{name}.engine", "--seeds", "0-2", "-o", f"{name}.npy"]) == 0
    np.testing.assert_allclose(np.load("turned.npy"), np.load("plain.npy"), atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["w.safetensors"], "weights alone hold no network; give FILE.py:FACTORY"),
        (["w.pt"], "weights alone hold no network; give FILE.py:FACTORY"),
        (["fashoin"], "did you mean 'fashion'?"),
        (["stable-diffusion"], "no file or folder of this name is here; expected a path ending in .onnx"),
        (["fashion", "--guidance", "lable=10"], "did you mean label?"),
        (["fashion", "--guidance", "clasifier=fashion"], "did you mean classifier?"),
        (["fashion.engine"], "engine 'fashion.engine' does not exist; give a directory that 'pfdiff build' wrote"),
        (["fashion", "--prediction", "epsiln"], "did you mean epsilon?"),
        (["fashion", "--time-map", "2*u"], "--time-map '2*u'"),
    ],
)
def test_what_is_often_tried_is_answered(capfd: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["build", *words, "--nfe", "4"]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_no_condition(engine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("x.npy")
    assert main(["sample", "small.engine", "--nfe", "4", "--label", "@x.npy", "-o", "y.npy"]) == 2
    assert "--label: 'x.npy' is no regular file" in capfd.readouterr().err
