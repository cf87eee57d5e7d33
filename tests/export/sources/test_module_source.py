"""Modules and factories as networks: odd signatures, conditions, tuples and dictionaries, factories in files."""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pfdiff.engine.contract.condition import Condition
from pfdiff.engine.errors import InputError
from pfdiff.export.network import Network

from ...small.modules import SHAPE, WORDS, Labelled, LikeDiffusers, Mixing, Plain, check_written, wave


class TimeFirst(Mixing):
    def forward(self, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return time, wave(self.mix(state), time)


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
    assert network.contract.name == "nets-make"
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
    ("source", "message"),
    [
        (None, "there is no file"),
        ("def make(:\n", "cannot be imported .SyntaxError"),
        ("import pfdiff_no_such_module\n", "cannot be imported .ModuleNotFoundError"),
        ("def build(): ...\n", "no function 'make'; it has build"),
        ("def make(): return 3\n", "returned int, expected an nn.Module"),
        ("def make(): raise OSError('no weights')\n", "failed .OSError: no weights"),
        ("def make(width): ...\n", "called without arguments"),
    ],
)
def test_a_bad_factory_is_one_line(tmp_path: Path, source: str | None, message: str) -> None:
    file = tmp_path / "nets.py"
    if source is not None:
        file.write_text(source)
    check_refused(f"{file}:make", message)


def test_a_factory_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text("make = 3\n")
    check_refused(f"{tmp_path / 'nets.py'}:ma ke", "expected file.py:factory")


def check_refused(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Network(source, shape=SHAPE, **WORDS)
    assert "\n" not in str(caught.value)
