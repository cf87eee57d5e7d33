"""Time maps: what a network is fed, as a module and as an ONNX file, and which way its time runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pfdiff
from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.engine.errors import InputError
from pfdiff.export.check import OnnxRun
from pfdiff.export.network import Network
from pfdiff.export.time_map import TimeMap, parse_prediction, parse_time_map

SHAPE = (2, 3, 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("t", TimeMap("t")),
        ("1-t", TimeMap("t", -1, 1)),
        ("1 - t", TimeMap("t", -1, 1)),
        ("1000*t", TimeMap("t", 1000)),
        ("t/1000", TimeMap("t", 1e-3)),
        ("1000-1000*t", TimeMap("t", -1000, 1000)),
        ("t*1e3+1", TimeMap("t", 1000, 1)),
        ("1e-3*t", TimeMap("t", 1e-3)),
        ("sigma", TimeMap("sigma")),
        ("-0.5*logsnr", TimeMap("logsnr", -0.5)),
        ("c_noise", TimeMap("c_noise")),
        ("999.9996 - 1000.00004*t", TimeMap("t", -1000.00004, 999.9996)),
        ("1e-3*t-1e+2", TimeMap("t", 1e-3, -100)),
    ],
)
def test_texts(text: str, expected: TimeMap) -> None:
    assert parse_time_map(text) == expected
    assert parse_time_map(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "1", "x", "t+t", "sigma*t", "0*t", "t**2", "t/0", "1-", "cosine(t)", "1-t; 2"),
        *("t--1", "1--t", "1-+t", "--t", "t-", "+-t", "nan+t", "inf-t", "1e400*t", "t+1e999"),
    ],
)
def test_other_texts_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match="time_map") as caught:
        parse_time_map(text)
    assert "\n" not in str(caught.value)


def test_predictions_by_the_names_of_others() -> None:
    assert parse_prediction("epsilon") == ("eps", False)
    assert parse_prediction("v_prediction") == ("v", False)
    assert parse_prediction("sample") == ("x0", False)
    assert parse_prediction("-flow") == ("flow", True)
    with pytest.raises(InputError, match="did you mean epsilon"):
        parse_prediction("epsilom")
    with pytest.raises(InputError, match=r"two meanings: give v for .*, or flow for"):
        parse_prediction("velocity")
    with pytest.raises(InputError, match="only flow has a sign"):
        parse_prediction("-eps")


# What is fed.
class Fed(nn.Module):
    """Returns the time it is fed, everywhere."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * 0 + t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


class FedWhole(Fed):
    """Takes int64 alone."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if t.dtype != torch.int64:
            raise TypeError("int64, please")
        return super().forward(x, t)


FORMULAS = {
    "1-t": lambda t, alpha, sigma: 1 - t,
    "sigma": lambda t, alpha, sigma: sigma / alpha,
    "logsnr": lambda t, alpha, sigma: np.log(alpha**2 / sigma**2),
    "c_noise": lambda t, alpha, sigma: np.log(sigma / alpha) / 4,
    "2*c_noise+1": lambda t, alpha, sigma: np.log(sigma / alpha) / 2 + 1,
}
TIMES = {"linear:1000": [0, 1, 500, 999], "vp": [1e-3, 0.2, 1.0], "edm": [0.002, 1.0, 80.0], "cosine:50": [0, 20, 49]}


def formula_of(text: str, schedule: str) -> tuple[np.ndarray, np.ndarray]:
    """The schedule's times, and what is to be fed at them."""
    process, times = parse_schedule(schedule), np.array(TIMES[schedule])
    return times, FORMULAS[text](times, process.alpha(times), process.sigma(times))


@pytest.mark.parametrize("schedule", TIMES)
@pytest.mark.parametrize("text", FORMULAS)
def test_the_network_is_fed_the_formula(text: str, schedule: str) -> None:
    network = Network(Fed(), schedule=schedule, prediction="eps", shape=SHAPE, time_map=text)
    times, expected = formula_of(text, schedule)
    fed = network.evaluate(torch.zeros(len(times), *SHAPE), network.contract.feed_times(times))
    np.testing.assert_allclose(fed[:, 0, 0, 0], expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("form", ["module", "onnx"])
@pytest.mark.parametrize(
    ("text", "schedule"), [("sigma", "linear:1000"), ("logsnr", "vp"), ("2*c_noise+1", "edm"), ("1-t", "cosine:50")]
)
def test_the_exported_graph_holds_the_map(text: str, schedule: str, form: str, tmp_path: Path) -> None:
    words: dict[str, Any] = {"schedule": schedule, "prediction": "eps", "shape": SHAPE}
    source: Any = Fed() if form == "module" else exported(Fed(), tmp_path / "plain", **words)
    network = Network(source, **words, time_map=text)
    network.write(tmp_path)
    run = OnnxRun(tmp_path / "network.onnx", network.contract.inputs, network.contract.output)
    times, expected = formula_of(text, schedule)
    x = np.zeros((len(times), *SHAPE), np.float32)
    given = network.contract.feed_times(times)
    np.testing.assert_allclose(run((x, given))[:, 0, 0, 0], expected, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(network.evaluate(torch.from_numpy(x), given)[:, 0, 0, 0], expected, rtol=2e-5, atol=2e-6)


def exported(module: nn.Module, folder: Path, **words: Any) -> Path:
    """The module as an ONNX file."""
    folder.mkdir()
    Network(module, **words).write(folder)
    return folder / "network.onnx"


@pytest.mark.parametrize("form", ["module", "onnx"])
def test_whole_times(form: str, tmp_path: Path) -> None:
    words: dict[str, Any] = {"schedule": "flow", "prediction": "eps", "shape": SHAPE}
    source: Any = FedWhole()
    if form == "onnx":
        source = exported(source, tmp_path / "plain", **{**words, "schedule": "linear:1000"})
    network = Network(source, **words, time_map="1000-1000*t")
    network.write(tmp_path)
    assert network.contract.time_dtype == "float32"
    run = OnnxRun(tmp_path / "network.onnx", network.contract.inputs, network.contract.output)
    x = np.zeros((3, *SHAPE), np.float32)
    assert run((x, np.array([1.0, 0.25, 0.1234], np.float32)))[:, 0, 0, 0].tolist() == [0, 750, 877]


def test_a_scale_alone_stays_a_scale() -> None:
    words: dict[str, Any] = {"schedule": "flow", "prediction": "flow", "shape": SHAPE}
    plain, mapped = Network(Fed(), **words, time_scale=1000.0), Network(Fed(), **words, time_map="1000*t")
    assert mapped.contract == plain.contract
    assert mapped.digest == plain.digest
    assert Network(Fed(), **words, time_map="1-t").digest != plain.digest
    with pytest.raises(InputError, match="give one of them"):
        Network(Fed(), **words, time_map="1-t", time_scale=2.0)
    with pytest.raises(InputError, match="infinite at time 1, where alpha is 0"):
        Network(Fed(), **words, time_map="logsnr")


# Which way.
class GaussianFlow(nn.Module):
    """The exact velocity eps - x_0 of data N(0.3, 0.5^2), of the time t that is 1 at the noise."""

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.reshape(-1, *[1] * (x.ndim - 1))
        slope = (t - 0.25 * (1 - t)) / (t**2 + 0.25 * (1 - t) ** 2)
        return slope * (x - 0.3 * (1 - t)) - 0.3

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.velocity(x, t)


class Tutorial(GaussianFlow):
    """t = 0 is noise, t = 1 is data, and the target is x_1 - x_0: data minus noise."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return -self.velocity(x, 1 - t)


class Thousand(GaussianFlow):
    """The same with times 0 to 1000, and data minus noise for noise at 1000."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return -self.velocity(x, t / 1000)


@pytest.mark.parametrize("form", ["module", "onnx"])
@pytest.mark.parametrize(
    ("module", "described"),
    [
        (Tutorial, {"time_map": "1-t", "prediction": "flow"}),
        (Thousand, {"time_scale": 1000.0, "prediction": "-flow"}),
        (Thousand, {"time_map": "1000*t", "prediction": "-flow"}),
    ],
)
def test_a_network_of_the_other_direction_samples_the_same(
    module: type[GaussianFlow], described: dict[str, Any], form: str, tmp_path: Path
) -> None:
    words: dict[str, Any] = {"schedule": "flow", "shape": SHAPE}
    noise = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    made: list[Tensor] = []
    cases: list[tuple[nn.Module, dict[str, Any]]] = [(GaussianFlow(), {"prediction": "flow"}), (module(), described)]
    for index, (source, given) in enumerate(cases):
        file = exported(source, tmp_path / f"plain{index}", **words, prediction="flow") if form == "onnx" else source
        out = tmp_path / f"{index}.engine"
        network = Network(file, **words, **given)
        with pfdiff.build(network, 6, "ddim", grid="uniform", batch=4, backend="onnxruntime", out=out) as engine:
            made.append(engine.sample(noise=noise, nfe=6))
    torch.testing.assert_close(made[1], made[0], rtol=1e-4, atol=1e-4)
    assert abs(float(made[0].mean()) - 0.3) < 0.2  # of 72 numbers of deviation 0.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Velocity", "has two meanings"),
        ("noise", "did you mean eps?"),
        ("Noise", "did you mean eps?"),
        ("image", "did you mean x0?"),
        ("EPS", "did you mean eps?"),
        ("epsilonn", "did you mean epsilon?"),
    ],
)
def test_a_prediction_by_another_name_is_answered(text: str, said: str) -> None:
    with pytest.raises(InputError) as refusal:
        parse_prediction(text)
    assert said in str(refusal.value)
