"""Networks in every form: odd signatures, factories, foreign ONNX files, the shipped one; and bad input."""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from torch import Tensor, nn

from pfdiff.engine.contract import Condition
from pfdiff.engine.errors import InputError
from pfdiff.export.check import OnnxRun
from pfdiff.export.sources import Network

SHAPE = (2, 4, 4)
WORDS: dict[str, Any] = {"schedule": "linear:1000", "prediction": "eps"}
DATA = Path(os.environ.get("PFDIFF_DATA", Path(__file__).parents[2] / "shared" / "data"))


def wave(x: Tensor, t: Tensor) -> Tensor:
    return x * torch.cos(t.float() / 100)[:, None, None, None]


class Mixing(nn.Module):
    """Without a forward: each subclass has its own signature."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Conv2d(2, 2, 1)


class Plain(Mixing):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return wave(self.mix(x), t)


class Labelled(Mixing):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 2)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return wave(self.mix(x), t) + self.table(y)[:, :, None, None]


class TimeFirst(Mixing):
    def forward(self, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return time, wave(self.mix(state), time)


@dataclass
class Output:
    sample: Tensor


class LikeDiffusers(Mixing):
    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Linear(5, 2)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        mask: Tensor | None = None,
        *,
        strength: Tensor | None = None,
        return_dict: bool = True,
    ) -> Output:
        y = wave(self.mix(sample), timestep) + self.text(encoder_hidden_states).mean(1)[:, :, None, None]
        if strength is not None:
            y = y * strength[:, None, None, None]
        return Output(sample=y) if return_dict else Output(-y)


class Dictionary(Mixing):
    def forward(self, x: Tensor, t: Tensor, **extra: Tensor) -> dict[str, Tensor]:
        y = wave(self.mix(x), t) + extra["shift"][:, :, None, None]
        return OrderedDict(mean=y, variance=y * 0)


class StepTable(Mixing):
    """Looks its integer time up in a table."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Embedding(1000, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.mix(x) + self.steps(t)[:, :, None, None]


# Modules.
def check_written(network: Network, folder: Path, **given: Any) -> None:
    """network.onnx at batch 3 equals `network.evaluate`."""
    contract = network.write(folder)
    x = torch.randn(3, *contract.shape)
    t = np.array([3, 200, 999]) if contract.time_rank else np.array(7)
    wanted = network.evaluate(x, t, given).numpy()
    fed = [one.values(given.get(one.name), 3) for one in contract.conditions]
    names = ("x", "t", *(one.name for one in contract.conditions))
    got = OnnxRun(folder / "network.onnx", names, "out")((x.numpy(), t.astype(contract.time_dtype), *fed))
    assert got.shape == (3, *contract.shape)
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def test_a_label_is_found_with_its_range(tmp_path: Path) -> None:
    network = Network(Labelled(), shape=SHAPE, **WORDS)
    assert network.contract.conditions == (Condition("y", "int64", low=0, high=6),)
    assert network.contract.name == "Labelled"
    check_written(network, tmp_path, y=[1, 6, 0])


def test_time_before_x_and_a_tuple(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"forward returns 0, 1; choose the prediction with output="):
        Network(TimeFirst(), shape=SHAPE, input="state", time="time", **WORDS)
    check_written(Network(TimeFirst(), shape=SHAPE, input="state", time="time", output=1, **WORDS), tmp_path)


def test_keyword_only_conditions_and_an_output_object(tmp_path: Path) -> None:
    network = Network(
        LikeDiffusers(),
        shape=SHAPE,
        conditions={
            "encoder_hidden_states": torch.zeros(2, 3, 5),
            "strength": Condition("strength", "float32", default=1),
        },
        **WORDS,
    )
    assert [(one.name, one.shape) for one in network.contract.conditions] == [
        ("encoder_hidden_states", (3, 5)),
        ("strength", ()),
    ]
    check_written(network, tmp_path, encoder_hidden_states=np.ones((3, 3, 5)), strength=[0.5, 1, 2])


def test_open_keywords_and_a_dictionary(tmp_path: Path) -> None:
    network = Network(
        Dictionary(), shape=SHAPE, conditions={"shift": Condition("shift", "float32", (2,))}, output="mean", **WORDS
    )
    check_written(network, tmp_path, shift=np.ones(2))


def test_integer_time_is_found(tmp_path: Path) -> None:
    network = Network(StepTable(), shape=SHAPE, **WORDS)
    assert network.contract.time_dtype == "int64"
    check_written(network, tmp_path)


def test_example_gives_shape_time_and_conditions() -> None:
    example = {"sample": torch.zeros(2, *SHAPE), "timestep": torch.zeros(2, dtype=torch.int64)}
    network = Network(LikeDiffusers(), example={**example, "encoder_hidden_states": torch.zeros(2, 3, 5)}, **WORDS)
    assert network.contract.shape == SHAPE
    assert network.contract.time_dtype == "int64"
    assert network.contract.conditions == (Condition("encoder_hidden_states", "float32", (3, 5)),)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow", "edm"])
def test_every_prediction_reaches_the_contract(prediction: str) -> None:
    schedule = {"flow": "flow", "edm": "edm"}.get(prediction, "linear:1000")
    network = Network(Plain(), shape=SHAPE, schedule=schedule, prediction=prediction)
    assert network.contract.prediction == prediction


def test_edm_exports_the_raw_network(tmp_path: Path) -> None:
    check_written(Network(Plain(), shape=SHAPE, schedule="edm", prediction="edm"), tmp_path)


# Factories.
def test_a_factory_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "nets.py"
    file.write_text(
        "import torch\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Options:\n    width: int = 2\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.mix = torch.nn.Conv2d(2, Options().width, 1)\n"
        "    def forward(self, x, t):\n        return self.mix(x) * torch.cos(t)[:, None, None, None]\n"
        "def make():\n    torch.manual_seed(0)\n    return Net()\n"
    )
    network = Network(f"{file}:make", shape=SHAPE, **WORDS)
    assert network.contract.name == "nets"
    check_written(network, tmp_path)
    file.write_text(file.read_text().replace("torch.cos(t)", "torch.sin(t)"))  # same size, same second
    changed = Network(f"{file}:make", shape=SHAPE, **WORDS)
    assert changed.digest != network.digest
    x = torch.ones(1, *SHAPE)
    assert not torch.equal(changed.evaluate(x, 3.0), network.evaluate(x, 3.0))
    assert not (tmp_path / "__pycache__").exists()


def test_a_factory_imports_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "pfdiff_test_neighbour.py").write_text("WIDTH = 2\n")
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom pfdiff_test_neighbour import WIDTH\n"
        "class Net(torch.nn.Module):\n    def forward(self, x, t):\n        return x * WIDTH\n"
    )
    before = list(sys.path)
    network = Network(f"{tmp_path / 'nets.py'}:Net", shape=SHAPE, **WORDS)
    assert sys.path == before
    assert torch.equal(network.evaluate(torch.ones(1, *SHAPE), 3.0), torch.full((1, *SHAPE), 2.0))


@pytest.mark.parametrize(
    ("source", "factory", "message"),
    [
        (None, "make", "there is no file"),
        ("def make(:\n", "make", "cannot be imported .SyntaxError"),
        ("import pfdiff_no_such_module\n", "make", "cannot be imported .ModuleNotFoundError"),
        ("def build(): ...\n", "make", "no function 'make'; it has build"),
        ("def make(): return 3\n", "make", "returned int, expected an nn.Module"),
        ("def make(): raise OSError('no weights')\n", "make", "failed .OSError: no weights"),
        ("def make(width): ...\n", "make", "called without arguments"),
        ("make = 3\n", "ma ke", "expected file.py:factory"),
    ],
)
def test_a_bad_factory_is_one_line(tmp_path: Path, source: str | None, factory: str, message: str) -> None:
    file = tmp_path / "nets.py"
    if source is not None:
        file.write_text(source)
    with pytest.raises(InputError, match=message) as caught:
        Network(f"{file}:{factory}", shape=SHAPE, **WORDS)
    assert "\n" not in str(caught.value)


# Digests.
def test_the_digest_follows_content_only() -> None:
    def digest(module: nn.Module, **more: Any) -> str:
        return Network(module, shape=SHAPE, **{**WORDS, **more}).digest

    first = digest(Plain())
    assert first == digest(Plain())
    assert len(first) == 64
    moved = Plain()
    with torch.no_grad():
        moved.mix.weight[0, 0] += 1e-6
    assert first != digest(moved)
    assert first != digest(Plain(), prediction="v")
    assert first != digest(Plain(), schedule="cosine:1000")
    dilated = Plain()
    dilated.mix.dilation = (2, 2)
    assert first != digest(dilated)
    assert first == digest(Plain().train())


# Bad modules and words.
class NoTime(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class NoTensor(Mixing):
    def forward(self, x: Tensor, t: Tensor) -> Any:
        return SimpleNamespace(count=3)


@pytest.mark.parametrize(
    ("source", "words", "message"),
    [
        (Plain(), {"shape": None}, "shape is missing; give shape="),
        (Plain(), {"shape": (3, 4, 4)}, r"forward failed with x \[2, 3, 4, 4\].*correct shape="),
        (Plain(), {"shape": (2, 0, 4)}, "expected a tuple of integers"),
        (Plain(), {"schedule": None}, "schedule is missing"),
        (Plain(), {"schedule": "sigmoid:9"}, "sigmoid"),
        (Plain(), {"prediction": None}, "what it predicts is missing"),
        (Plain(), {"prediction": "score"}, "expected one of eps, x0, v, flow, edm"),
        (Plain(), {"time_scale": -1.0}, "time_scale"),
        (Plain(), {"time_dtype": "int8"}, "expected one of float32, int64"),
        (Plain(), {"time": "when"}, r"no parameter 'when' in forward\(x, t\)"),
        (Plain(), {"conditions": {"label": Condition("label", "int64")}}, "no parameter 'label'"),
        (Plain(), {"conditions": {"t2": Condition("t3", "int64")}}, "use one name"),
        (Plain(), {"learned_sigma": True}, r"forward returns|learned"),
        (LikeDiffusers(), {}, r"needs 'encoder_hidden_states'; say what it is with conditions="),
        (LikeDiffusers(), {"conditions": {"encoder_hidden_states": torch.zeros(2, 3, 5).double()}}, "torch.float64"),
        (NoTime(), {}, r"takes no x and time; expected forward\(x, t"),
        (NoTensor(), {}, "returns no tensor"),
        (42, {}, "got int, expected an nn.Module, a pipeline or a path ending in .onnx"),
        (
            "faces",
            {},
            "not known; expected a path ending in .onnx, file.py:factory, a diffusers folder, or a shipped netw",
        ),
        ("model.ckpt", {}, "not known"),
    ],
)
def test_bad_words_are_one_line(source: Any, words: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Network(source, **{"shape": SHAPE, **WORDS, **words})
    assert "\n" not in str(caught.value)


def test_evaluate_refuses_wrong_inputs() -> None:
    network = Network(Labelled(), shape=SHAPE, **WORDS)
    x = torch.zeros(2, *SHAPE)
    for values, given, message in (
        (x[:, :1], {"y": 1}, "x is"),
        (x, {}, "condition 'y' is missing"),
        (x, {"y": 7}, "expected values in 0..6"),
        (x, {"y": 1, "z": 1}, "unknown condition 'z'; this network takes y"),
    ):
        with pytest.raises(InputError, match=message):
            network.evaluate(values, 3.0, given)
    assert network.evaluate(x, 3.0, {"y": 2}).shape == x.shape


# Foreign ONNX files.
def onnx_file(path: Path, text: str, *, opset: int = 17, header: str = "") -> Path:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]{header}> net {text}')
    onnx.save(model, path)
    return path


BODY = """{
    shape = Constant <value_ints = [-1, 1, 1, 1]> ()
    f = Cast <to = 1> (time)
    c = Cos (f)
    r = Reshape (c, shape)
    noise = Mul (x_in, r)
}"""


@pytest.mark.parametrize(
    ("x", "time", "expected"),
    [
        ("float[b,2,4,4]", "float[b]", {"time_rank": 1, "time_dtype": "float32", "fixed_batch": None}),
        ("float[b,2,4,4]", "int64[b]", {"time_dtype": "int64"}),
        ("float[b,2,4,4]", "int32[b]", {"time_dtype": "int64"}),
        ("float[b,2,4,4]", "double[b]", {"time_dtype": "float32"}),
        ("float[b,2,4,4]", "float16[b,1]", {"time_rank": 1, "time_dtype": "float32"}),
        ("float[b,2,4,4]", "int64[b,1,1,1]", {"time_rank": 1}),
        ("float[b,2,4,4]", "float[1]", {"time_rank": 0}),
        ("float[b,2,4,4]", "int32", {"time_rank": 0, "time_dtype": "int64"}),
        ("float[?,2,4,4]", "float[?]", {"fixed_batch": None}),
        ("float[3,2,4,4]", "float[3]", {"fixed_batch": 3}),
        ("float[3,2,4,4]", "float[1]", {"fixed_batch": 3, "time_rank": 0}),
        ("float[1,2,4,4]", "int64[1]", {"fixed_batch": 1, "time_rank": 1}),
        ("float[b,2,h,w]", "float[n]", {"fixed_batch": None, "time_rank": 1}),
    ],
)
@pytest.mark.parametrize("opset", [13, 21])
def test_times_and_batches_of_every_kind(
    tmp_path: Path, x: str, time: str, expected: dict[str, Any], opset: int
) -> None:
    header = f"({x} x_in, {time} time) => ({x} noise) "
    path = onnx_file(tmp_path / "net.onnx", header + BODY, opset=opset)
    network = Network(path, shape=SHAPE, **WORDS)
    contract = network.write(tmp_path)
    assert {name: getattr(contract, name) for name in expected} == expected
    model = onnx.load(tmp_path / "network.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["x", "t", "out"]
    batch = contract.fixed_batch or 3
    given = torch.randn(batch, *SHAPE)
    times = np.arange(batch) * 7.0 if contract.time_rank else np.array(5.0)
    wanted = given.numpy() * np.cos(times).reshape((-1, 1, 1, 1) if contract.time_rank else ())
    np.testing.assert_allclose(network.evaluate(given, times), wanted, atol=1e-5)
    got = OnnxRun(tmp_path / "network.onnx", ("x", "t"), "out")((given.numpy(), times.astype(contract.time_dtype)))
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_conditions_keep_their_dtypes_and_get_identifiers(tmp_path: Path) -> None:
    text = """(float[b,2,4,4] out, int64[b] t.in, float[b,2] "class/text", int32[b] label) => (float[b,2,4,4] x) {
        axes = Constant <value_ints = [2, 3]> ()
        t = Unsqueeze ("class/text", axes)
        l = Cast <to = 1> (label)
        shape = Constant <value_ints = [-1, 1, 1, 1]> ()
        m = Reshape (l, shape)
        f = Cast <to = 1> (t.in)
        s = Reshape (f, shape)
        a = Mul (out, t)
        b = Add (a, m)
        x = Add (b, s)
    }"""
    path = onnx_file(tmp_path / "net.onnx", text.replace('"class/text"', "class_text").replace("t.in", "t_in"))
    model = onnx.load(path)
    for node in model.graph.node:
        node.input[:] = ["class/text" if name == "class_text" else name for name in node.input]
    model.graph.input[2].name = "class/text"
    onnx.save(model, path)
    label = Condition("label", "int32", default=3, low=0, high=3)
    with pytest.raises(InputError, match="several could be the time: t_in int64"):
        Network(path, **WORDS)
    network = Network(path, time="t_in", conditions={"label": label}, **WORDS)
    assert network.contract.conditions == (Condition("class_text", "float32", (2,)), label)
    check_written(network, tmp_path, class_text=np.ones((3, 2)), label=[0, 1, 2])


def test_names_of_the_contract_inside_the_graph_step_aside(tmp_path: Path) -> None:
    text = """(float[b,2,4,4] t, float[b] x) => (float[b,2,4,4] y)
    <float out = {2.0}> {
        shape = Constant <value_ints = [-1, 1, 1, 1]> ()
        r = Reshape (x, shape)
        out_inner = Mul (t, out)
        y = Mul (out_inner, r)
    }"""
    network = Network(onnx_file(tmp_path / "net.onnx", text), input="t", time="x", **WORDS)
    check_written(network, tmp_path)


def test_learned_sigma_in_a_file(tmp_path: Path) -> None:
    text = """(float[b,2,4,4] x, float[b] t) => (float[b,4,4,4] y) {
        shape = Constant <value_ints = [-1, 1, 1, 1]> ()
        r = Reshape (t, shape)
        m = Mul (x, r)
        y = Concat <axis = 1> (m, x)
    }"""
    path = onnx_file(tmp_path / "net.onnx", text)
    with pytest.raises(InputError, match=r"learned_sigma=True \(--learned-sigma\)"):
        Network(path, **WORDS)
    check_written(Network(path, learned_sigma=True, **WORDS), tmp_path)


def test_half_precision_files_stay_as_they_are(tmp_path: Path) -> None:
    text = "(float16[b,2,4,4] x_in, float[b] time) => (float16[b,2,4,4] noise) " + BODY.replace("to = 1", "to = 10")
    network = Network(onnx_file(tmp_path / "net.onnx", text), **WORDS)
    assert network.contract.precision == "fp16"
    with pytest.raises(InputError, match=r"fp16 weights and is not converted to fp32.*build with precision fp16"):
        network.write(tmp_path)
    assert network.write(tmp_path, "fp16").precision == "fp16"


def test_external_weights_are_read_and_hashed(tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    text = """(float[b,2,4,4] x, float[b] t) => (float[b,2,4,4] y) <float[1,2,4,4] w> {
        shape = Constant <value_ints = [-1, 1, 1, 1]> ()
        r = Reshape (t, shape)
        m = Mul (x, w)
        y = Mul (m, r)
    }"""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> net {text}')
    weights = np.arange(32, dtype=np.float32).reshape(1, 2, 4, 4)
    del model.graph.initializer[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(model, file, save_as_external_data=True, location="weights.bin", size_threshold=0)
    network = Network(file, **WORDS)
    before = network.digest
    folder = tmp_path / "out"
    folder.mkdir()
    check_written(network, folder)
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[7] ^= 1
    (tmp_path / "weights.bin").write_bytes(data)
    assert Network(file, **WORDS).digest != before
    (tmp_path / "weights.bin").write_bytes(data[:40])
    with pytest.raises(InputError, match=r"weights.bin is truncated"):
        Network(file, **WORDS)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"weights.bin is missing; put it beside"):
        Network(file, **WORDS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"", "the file is empty"),
        (b"\x00\xff not a network" * 40, "not an ONNX file, or truncated"),
        (b"<html>404</html>", "not an ONNX"),
        ("half", "not an ONNX file, or truncated"),
    ],
)
def test_files_that_are_no_networks(tmp_path: Path, content: bytes | str | None, message: str) -> None:
    path = tmp_path / "net.onnx"
    if content == "half":
        onnx_file(path, "(float[b,2,4,4] x_in, float[b] time) => (float[b,2,4,4] noise) " + BODY)
        content = path.read_bytes()[:-150]
    if isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        Network(path, **WORDS)
    assert "\n" not in str(caught.value)


NOISY = "(float[b,2,4,4] x_in, float[b] time) => (float[b,2,4,4] noise) "


@pytest.mark.parametrize(
    ("header", "words", "message"),
    [
        (NOISY, {"input": "image"}, "no 'image' for input=; choose among x_in float32"),
        (NOISY, {"time": "sigma"}, "no 'sigma' for time="),
        (NOISY, {"output": "eps"}, "no 'eps' for output="),
        (NOISY, {"shape": (3, 4, 4)}, r"no input takes shape 3, 4, 4: x_in.*correct shape="),
        (NOISY, {"time_dtype": "int64"}, "time_dtype int64, but the file takes 'time float32"),
        (NOISY, {"conditions": {"label": Condition("label", "int64")}}, "no input 'label' for this condition"),
        (NOISY, {"conditions": {"label": torch.zeros(2)}}, "got Tensor, expected a Condition"),
        (NOISY.replace("b,2,4,4] x", "b,2,h,w] x"), {}, r"leaves its size open; give shape= \(--shape"),
        (
            NOISY.replace("float[b,2,4,4] noise", "float[b,10] noise"),
            {},
            r"'noise float32 \[\?, 10\]', expected \[batch, 2, 4, 4\]",
        ),
        (NOISY.replace("float[b] time", "float[b] time, float[b,2,4,4] low_res"), {}, "several could be the input"),
        (NOISY.replace("float[b] time", "float[b] time, float[1,5] text"), {}, "no batch dimension like x"),
        (NOISY.replace("float[b] time", "float[b] time, float[b,n,5] text"), {}, r"--condition text:float32:77x768"),
        (NOISY.replace("float[b] time", "float[4] time"), {}, "another batch"),
        (NOISY.replace("float[b,2,4,4] x_in", "double[b,2,4,4] x_in"), {}, "export it again"),
        (NOISY.replace("float[b] time", "float[b,3] time"), {}, "none looks like the time"),
        (NOISY.replace("float[b] time", "string[b] time"), {}, "no tensor of a known dtype"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, header: str, words: dict[str, Any], message: str) -> None:
    path = onnx_file(tmp_path / "net.onnx", header + BODY)
    with pytest.raises(InputError, match=message) as caught:
        Network(path, **{**WORDS, **words}).write(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_old_opset_is_refused(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "net.onnx", NOISY + BODY, opset=12)
    with pytest.raises(InputError, match="opset 12, expected 13 or newer"):
        Network(path, **WORDS)


def test_a_file_that_lies_about_its_batch(tmp_path: Path) -> None:
    body = BODY.replace("[-1, 1, 1, 1]", "[1, 1, 1, 1]")
    network = Network(onnx_file(tmp_path / "net.onnx", NOISY + body), **WORDS)
    with pytest.raises(InputError, match=r"net.onnx: fails at batch 3"):
        network.write(tmp_path)
    assert not (tmp_path / "network.onnx").exists()


# Real networks.
def test_the_shipped_network(tmp_path: Path) -> None:
    network = Network("fashion")
    contract = network.contract
    assert (contract.shape, contract.schedule, contract.prediction) == ((1, 28, 28), "linear:1000", "v")
    assert [one.name for one in contract.conditions] == ["label"]
    assert network.digest == Network("fashion").digest
    check_written(network, tmp_path, label=["bag", "coat", "shirt"])


def test_a_foreign_trained_network(tmp_path: Path) -> None:
    path = DATA / "mnist28_ddpm_cosine60_eps.onnx"
    if not path.is_file():
        pytest.skip(f"needs {path.name} in the folder PFDIFF_DATA names")
    network = Network(path, schedule="cosine:60?beta_max=0.999", prediction="eps")
    assert network.contract.shape == (1, 28, 28)
    assert network.contract.time_dtype == "int64"
    contract = network.write(tmp_path)
    x = torch.randn(3, 1, 28, 28)
    t = np.array([0, 30, 59])
    got = OnnxRun(tmp_path / "network.onnx", ("x", "t"), "out")((x.numpy(), contract.feed_times(t)))
    np.testing.assert_allclose(got, network.evaluate(x, t), atol=1e-5)
    with pytest.raises(InputError, match="not converted to fp16"):
        network.write(tmp_path, "fp16")
    classifier = DATA / "mnist28_classifier.onnx"
    with pytest.raises(InputError, match="no input for the time"):
        Network(classifier, schedule="cosine:60", prediction="eps")
