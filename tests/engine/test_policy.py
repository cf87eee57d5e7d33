"""Engines that are policies: observations in, actions out, a controller, deadlines; numbers against float64."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pfdiff
from pfdiff.engine.artifact import read_artifact, write_manifest
from pfdiff.engine.compiler.part import last_part
from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.engine.contract.policy import ObservationContract, Observed, PolicyContract
from pfdiff.engine.runtime.timing.deadline import Deadlines

from ..small import policy as small

DRAW = np.random.default_rng(0)
ARM = DRAW.normal(size=(20, 3)).astype(np.float32)  # a row a tick
CAMERA = DRAW.normal(size=(20, 1, 2, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pfdiff.Engine]:
    with small.build(tmp_path_factory.mktemp("policy") / "head.engine") as opened:
        yield opened


def observed(n: int) -> dict[str, np.ndarray]:
    """Of n robots, the two first ticks."""
    return {
        "arm": np.stack([ARM[i : i + 2] for i in range(n)]),
        "camera": np.stack([CAMERA[i : i + 2] for i in range(n)]),
    }


def close(found: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# One call.
@pytest.mark.parametrize("n", [1, 5])
def test_actions_are_those_of_the_encoder_and_the_network(engine: pfdiff.Engine, n: int) -> None:
    noise = DRAW.normal(size=(n, small.HORIZON, small.ACTIONS)).astype(np.float32)
    given = observed(n)
    close(engine.sample(noise=noise, observation=given, nfe=5), small.exact(noise, **given, nfe=5))
    one = {name: value[0] for name, value in given.items()}  # one observation for all
    repeated = {name: np.repeat(value[:1], n, axis=0) for name, value in given.items()}
    close(engine.sample(noise=noise, observation=one, nfe=2), small.exact(noise, **repeated, nfe=2))


def test_what_the_encoder_makes_may_be_given_instead(engine: pfdiff.Engine) -> None:
    given = observed(2)
    cache = np.concatenate((given["arm"], given["camera"].mean((2, 3, 4))[:, :, None]), axis=2)
    both = engine.sample(seeds=[3, 4], nfe=2, cache=cache), engine.sample(seeds=[3, 4], nfe=2, observation=given)
    torch.testing.assert_close(*both, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("observation", "said"),
    [
        (ARM[:2], "expected a dictionary of arm, camera"),
        ({"arm": ARM[:2]}, "'camera' is missing"),
        ({"arm": ARM[:2], "camera": CAMERA[:2], "foot": 0}, "'foot' is unknown"),
        ({"arm": ARM[:3], "camera": CAMERA[:2]}, r"'arm': got shape \[3, 3\], expected \[2, 3\]"),
        ({"arm": ARM[:2] * np.nan, "camera": CAMERA[:2]}, "'arm' has NaN"),
        ({"arm": ARM[:2], "camera": (255 * CAMERA[:2]).astype(np.uint8)}, "'camera': got uint8"),
        ({"arm": [[1, 2], [3]], "camera": CAMERA[:2]}, "unequal lengths"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused(engine: pfdiff.Engine, observation: Any, said: str) -> None:
    with pytest.raises(pfdiff.InputError, match=said):
        engine.sample(seeds=[0], nfe=1, observation=observation)
    with pytest.raises(pfdiff.InputError, match="got both observation and cache"):
        engine.sample(seeds=[0], nfe=1, observation=observed(1), cache=np.zeros((2, 4)))


# A loop.
def test_the_controller_samples_a_chunk_from_the_last_observations(engine: pfdiff.Engine) -> None:
    control = pfdiff.Controller(engine, 2, seed=11)
    noise = pfdiff.noise([11, 12, 13], (small.HORIZON, small.ACTIONS)).numpy()
    for tick in range(8):
        action = control.act({"arm": ARM[tick], "camera": CAMERA[tick]})
        chunk, within = divmod(tick, 3)
        last = [max(0, 3 * chunk - 1), 3 * chunk]  # the first observation stands for the one before it
        (expected,) = small.exact(noise[chunk : chunk + 1], ARM[last][None], CAMERA[last][None], 2)
        close(action, expected[1 + within])
    control.reset(11)
    (expected,) = small.exact(noise[:1], ARM[[5, 5]][None], CAMERA[[5, 5]][None], 2)
    close(control.act({"arm": ARM[5], "camera": CAMERA[5]}), expected[1])


def test_a_warm_start_begins_at_x_t_of_the_shifted_chunk(engine: pfdiff.Engine) -> None:
    control = pfdiff.Controller(engine, 5, every=2, strength=0.4, seed=7)
    for tick in range(2):
        control.act({"arm": ARM[tick], "camera": CAMERA[tick]})
    assert control.chunk is not None
    former = (control.chunk[0].double().numpy() - small.OFFSET) / small.SCALE
    action = control.act({"arm": ARM[2], "camera": CAMERA[2]})

    shifted = former[[2, 3, 4, 5, 5, 5]]
    program = last_part(engine.programs[5], 0.4, whole=False)
    schedule = parse_schedule(program.schedule)
    start = float(program.times[0])
    noise = pfdiff.noise([8], shifted.shape).numpy()[0]
    x_t = schedule.alpha(start) * shifted + schedule.sigma(start) * noise
    cache = np.concatenate((ARM[1:3], CAMERA[1:3].mean((1, 2, 3))[:, None]), axis=1)
    sample = program.evaluate(
        lambda x, t: np.tanh(0.5 * x) + 0.0005 * t + 0.1 * cache.mean(), x_t[None] / program.table[0, 0]
    )
    close(action, (sample[0] * small.SCALE + small.OFFSET)[1])


def test_robots_side_by_side_act_as_each_alone(engine: pfdiff.Engine) -> None:
    many = pfdiff.Controller(engine, 2, robots=3, seed=20)
    alone = [pfdiff.Controller(engine, 2, seed=20 + n) for n in range(3)]
    for tick in range(3):  # one chunk: later ones take other seeds
        views = [{"arm": ARM[tick + n], "camera": CAMERA[tick + n]} for n in range(3)]
        together = {name: np.stack([one[name] for one in views]) for name in views[0]}
        expected = np.stack([one.act(view) for one, view in zip(alone, views, strict=True)])
        np.testing.assert_allclose(many.act(together), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nfe": 3}, "nfe=3, this engine has 1, 2, 5"),
        ({"nfe": "2"}, "nfe='2', this engine has 1, 2, 5"),
        ({}, "nfe is missing and this engine has several"),
        ({"strength": "a"}, "strength='a'"),
        ({"every": 6}, r"every=6, expected a number of actions in 1\.\.5"),
        ({"strength": 0.0}, "strength=0"),
        ({"robots": 0}, "robots=0"),
        ({"seed": -1, "nfe": 1}, "seed=-1"),
        ({"deadline_ms": 5, "nfe": 1}, "both nfe and deadline_ms"),
    ],
)
def test_a_controller_refuses_what_it_cannot_do(engine: pfdiff.Engine, options: dict[str, Any], said: str) -> None:
    with pytest.raises(pfdiff.InputError, match=said):
        pfdiff.Controller(engine, **options)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"camera": (255 * CAMERA[1]).astype(np.uint8)}, "'camera': got uint8"),
        ({"arm": ARM[1] + 1j}, "'arm': got complex64"),
        ({"arm": np.array(["a", "b", "c"])}, "'arm': got <U1"),
        ({"arm": [1, [2], 3]}, "'arm': got lists of unequal lengths"),
        ({"arm": ARM[1] * np.nan}, "'arm' has NaN"),
        ({"arm": np.array([1e300, 0, 0])}, "'arm' has NaN or infinite"),
        ({5: ARM[1]}, "got arm, camera, 5, this policy observes arm, camera"),
    ],
)
def test_a_tick_that_is_refused_leaves_no_trace(engine: pfdiff.Engine, changed: dict[Any, Any], said: str) -> None:
    """Also between two chunks, where nothing is sampled, and before the first."""
    control, other = pfdiff.Controller(engine, 2, seed=3), pfdiff.Controller(engine, 2, seed=3)
    for tick in range(4):
        view = {"arm": ARM[tick], "camera": CAMERA[tick]}
        for bad, words in (({**view, **changed}, said), (np.zeros(5), "expected a dictionary of arm, camera")):
            with pytest.raises(pfdiff.InputError, match=words):
                control.act(bad)
        np.testing.assert_array_equal(control.act(view), other.act(view))


def test_a_tick_whose_sample_fails_leaves_no_trace(engine: pfdiff.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    control, other = pfdiff.Controller(engine, 2, seed=3, every=2), pfdiff.Controller(engine, 2, seed=3, every=2)
    views = [{"arm": ARM[tick], "camera": CAMERA[tick]} for tick in range(4)]
    for view in views[:2]:
        control.act(view)
    with monkeypatch.context() as patched:
        patched.setattr(control, "_engine", None)
        with pytest.raises(AttributeError):
            control.act(views[2])
    expected = [other.act(view) for view in views]
    np.testing.assert_array_equal([control.act(view) for view in views[2:]], expected[2:])


@pytest.mark.parametrize("seed", [-1, 1 << 64, "1", True, 1.5])
def test_a_reset_refuses_what_is_no_seed(engine: pfdiff.Engine, seed: Any) -> None:
    with pytest.raises(pfdiff.InputError, match="expected an integer in"):
        pfdiff.Controller(engine, 2).reset(seed)


# Deadlines.
@pytest.mark.parametrize("batch", [0, -1, True, "3", 2.0])
def test_a_deadline_of_no_samples_is_refused(engine: pfdiff.Engine, batch: Any) -> None:
    with pytest.raises(pfdiff.InputError, match="expected a number of samples of at least 1"):
        engine.nfe_within(100, batch)


def test_the_largest_nfe_that_fits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {1: 1.0, 2: 2.5, 4: 4.0, 8: 9.0}
    asked: list[int] = []
    monkeypatch.setattr("pfdiff.engine.runtime.timing.deadline.p99_ms", lambda call: call())

    def call(nfe: int, batch: int) -> Callable[[int], object]:
        asked.append(nfe)
        return lambda tick: times[nfe] * batch

    deadlines = Deadlines(call)
    assert [deadlines.nfe(ms, 1, times) for ms in (1, 2.4, 4, 8.9, 100)] == [1, 1, 4, 4, 8]
    assert sorted(asked) == [1, 2, 4, 8]  # each is measured once
    assert deadlines.nfe(5, 2, times) == 2
    with pytest.raises(pfdiff.InputError, match=r"1 evaluation of 1 take 1 ms \(p99\) here"):
        deadlines.nfe(0.5, 1, times)
    for wrong in (0, -1, "5", True):
        with pytest.raises(pfdiff.InputError, match="expected milliseconds above 0"):
            deadlines.nfe(wrong, 1, times)


def test_sample_takes_a_deadline(engine: pfdiff.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pfdiff.engine.runtime.timing.deadline.CALLS", 3)
    monkeypatch.setattr("pfdiff.engine.runtime.timing.deadline.FEWEST_CALLS", 3)
    given = observed(1)
    assert engine.nfe_within(60_000) == 5
    found = engine.sample(seeds=[1], observation=given, deadline_ms=60_000)
    torch.testing.assert_close(found, engine.sample(seeds=[1], observation=given, nfe=5), rtol=0, atol=0)
    with pytest.raises(pfdiff.InputError, match="both nfe and deadline_ms"):
        engine.sample(seeds=[1], observation=given, nfe=5, deadline_ms=5)


# What stands in engine.json.
def test_the_contract_is_kept(engine: pfdiff.Engine) -> None:
    contract = read_artifact(engine.path).policy
    assert contract == engine.policy
    assert contract == PolicyContract(
        ("cache",),
        (Observed("arm", (2, 3)), Observed("camera", (2, 1, 2, 2))),
        small.SCALE,
        small.OFFSET,
        1,
        3,
        ObservationContract("head", 14, 8),
    )


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("scale", [1.0], "as many offsets as scales"),
        ("scale", [1.0, 0.0], "no scale of 0"),
        ("first", 4, r"actions 4\.\.6 of samples \[6, 2\]"),
        ("count", 0, "count 0, expected an integer of at least 1"),
        ("conditions", ["hint"], "no condition 'hint'"),
        ("observations", [{"name": "arm", "shape": [2, 3]}], "an encoder of 14 numbers into 8, expected 6 into 8"),
        ("encoder", None, "give an encoder that makes these"),
        ("speed", 1, "unknown field 'speed'"),
    ],
)
def test_a_damaged_contract_is_named(engine: pfdiff.Engine, field: str, value: Any, said: str) -> None:
    assert engine.policy is not None
    plain = json.loads(json.dumps(engine.policy.to_dict())) | {field: value}
    shapes = {one.name: one.shape for one in engine.contract.conditions}
    with pytest.raises(pfdiff.InputError, match=said):
        PolicyContract.from_dict(plain).check(engine.contract.shape, shapes)


def test_an_engine_without_its_encoder_is_damaged(engine: pfdiff.Engine, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(engine.path, tmp_path / "copy.engine")
    artifact = read_artifact(tmp_path / "copy.engine")
    files = {name: one for name, one in artifact.files.items() if "observation" not in name}
    write_manifest(replace(artifact, files=files))
    with pytest.raises(pfdiff.EngineFileError, match=r"'encoders/observation.onnx' is not among its files"):
        pfdiff.load(tmp_path / "copy.engine")


def test_a_controller_needs_a_policy(tmp_path: Path) -> None:
    from ..small.engine import write_engine

    write_engine(tmp_path / "small.engine")
    with pfdiff.load(tmp_path / "small.engine") as plain, pytest.raises(pfdiff.InputError, match="is no policy"):
        pfdiff.Controller(plain)
    with pytest.raises(pfdiff.InputError, match="got str, expected an engine"):
        pfdiff.Controller(str(tmp_path))  # pyright: ignore[reportArgumentType]
