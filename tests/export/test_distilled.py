"""The shipped distilled network: its own sampler by default, its classes at 1, 2 and 4 evaluations, its training."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import pfdiff
from pfdiff.export import zoo
from pfdiff.export.zoo import distil_fashion
from pfdiff.export.zoo.fashion import FashionUNet
from pfdiff.export.zoo.fashion_classifier import load_classifier
from pfdiff.export.zoo.train_fashion import linear_schedule

COUNT = 60


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pfdiff.Engine]:
    out = tmp_path_factory.mktemp("distilled") / "distilled.engine"
    with pfdiff.build("fashion-distilled", [1, 2, 4], batch=20, backend="onnxruntime", out=out) as built:
        yield built


def agreement(engine: Any, nfe: int) -> float:
    labels = np.arange(COUNT) % 10
    x = engine.sample(seeds=range(COUNT), nfe=nfe, label=labels).float().clamp(-1, 1)
    with torch.inference_mode():
        return float((load_classifier()(x).argmax(1).numpy() == labels).mean())


def test_its_own_sampler_is_the_default(engine: pfdiff.Engine) -> None:
    """One or two evaluations of DDIM leave its teacher far below 90 %."""
    assert [one.solver for one in engine.programs.values()] == ["consistency"] * 3
    assert engine.programs[4].times.tolist() == [999, 749, 499, 249]
    assert engine.programs[1].noises == 0
    assert min(agreement(engine, nfe) for nfe in (1, 2, 4)) >= 0.9


@pytest.mark.parametrize("solver", ["lcm", "tcd"])
def test_other_samplers_of_distilled_networks(engine: pfdiff.Engine, solver: str) -> None:
    program = pfdiff.compile(solver, "linear:1000", 2, grid="trailing", prediction="v")
    assert program.times.tolist() == [999, 499]
    assert agreement(engine.with_programs({2: program}), 2) >= 0.85


def test_a_missing_file_of_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(zoo.resources, "files", lambda name: tmp_path)
    with pytest.raises(pfdiff.EngineFileError, match=r"train them with python -m pfdiff\.export\.zoo\.distil_fashion"):
        zoo.load("fashion-distilled")
    (tmp_path / "fashion_distilled.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(pfdiff.EngineFileError, match="are damaged") as caught:
        zoo.load("fashion-distilled")
    assert "\n" not in str(caught.value)


# The training script.
@pytest.fixture(scope="module")
def teacher() -> FashionUNet:
    source = zoo.load("fashion").source
    assert isinstance(source, FashionUNet)
    return source


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distil_fashion, "BLOCK", 4)


@pytest.mark.usefixtures("small")
def test_trajectories_are_states_of_the_guided_flow(teacher: FashionUNet) -> None:
    """The first step, written out: DEIS of order 1 is DDIM, with u + 1.5 (c - u)."""
    states = distil_fashion.trajectories(teacher, 3)
    assert states.shape == (4, 14, 1, 28, 28)
    assert np.abs(states[:, -1]).max() <= 1
    labels = distil_fashion.labels_of(3)
    assert labels.tolist() == [1, 2, 3, 4]
    noise = torch.from_numpy(states[:, 0]).float()
    with torch.inference_mode():
        time = torch.full((4,), 999.0)
        free, bound = teacher(noise, time, torch.full((4,), 10)), teacher(noise, time, labels)
    v = free + 1.5 * (bound - free)
    alphas, sigmas = linear_schedule()
    (a_s, a_t), (s_s, s_t) = alphas[[999, 916]], sigmas[[999, 916]]
    expected = a_t * (a_s * noise - s_s * v) + s_t * (s_s * noise + a_s * v)
    np.testing.assert_allclose(states[:, 1].astype(np.float32), expected.numpy(), atol=4e-3)  # float16


@pytest.mark.usefixtures("small")
def test_a_run_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def given(folder: str, steps: int) -> argparse.Namespace:
        return argparse.Namespace(out=tmp_path / folder, trajectories=8, steps=steps, batch=6, seed=0)

    distil_fashion.distil(given("whole", 3))
    distil_fashion.distil(given("parts", 2))
    (tmp_path / "parts" / "trajectories-001.npy").unlink()  # made again
    distil_fashion.distil(given("parts", 3))
    whole, parts = (load_file(tmp_path / one / "fashion_distilled.safetensors") for one in ("whole", "parts"))
    FashionUNet().load_state_dict({name: value.float() for name, value in parts.items()})
    # The rates of the second step differ: the fall is counted from the end.
    assert max(float((whole[name].float() - parts[name].float()).abs().max()) for name in whole) < 5e-3
    record = json.loads((tmp_path / "parts" / "fashion_distilled.json").read_text())
    assert record["steps"] == 3
    assert record["guidance"] == 1.5
    assert len(record["loss_curve"]) == 2
    assert all(np.isfinite(loss) for _, *losses in record["loss_curve"] for loss in losses)
    assert capsys.readouterr().out.count("trajectories-001.npy") == 3


def test_the_record_is_that_of_the_weights() -> None:
    record = json.loads((Path(zoo.__file__).parent / "fashion_distilled.json").read_text())
    assert record["teacher"] == "fashion"
    assert record["times"] == list(distil_fashion.TIMES)
    assert record["loss_curve"][-1][0] == record["steps"]
