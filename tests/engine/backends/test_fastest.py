"""backend="auto" on a CPU: the library that evaluates an engine in the least time, timed once and remembered."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

import pytest
import torch

import pfdiff
from pfdiff.engine import cache
from pfdiff.engine.artifact import Artifact
from pfdiff.engine.backends import choose, fastest
from pfdiff.engine.backends.abstract import Backend, Buffers, Evaluate, NetworkFiles
from pfdiff.engine.errors import BackendError, InputError

from ...small.engine import write_engine

DEFAULT, OTHER = "onnxruntime", "openvino"


@final
class Asleep(Backend):
    """Takes a given time to evaluate nothing; closed ones are counted."""

    def __init__(self, name: str, seconds: float, closed: list[str]) -> None:
        self.name, self.seconds, self.closed = name, seconds, closed
        self.device, self.dtype, self.threads, self.description = torch.device("cpu"), torch.float32, None, name

    def bind(self, sets: Sequence[Buffers]) -> list[Evaluate]:
        def evaluate() -> torch.Tensor:
            time.sleep(self.seconds)
            return sets[0].out

        return [evaluate]

    def close(self) -> None:
        self.closed.append(self.name)


@final
class Libraries:
    """Pretended backends: seconds of an evaluation by name, None for one that refuses; what was loaded and closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path, **seconds: float | None) -> None:
        self.seconds, self.loaded, self.closed = seconds, list[str](), list[str]()
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        monkeypatch.setattr(fastest, "TURN_S", 0.02)
        monkeypatch.setattr(fastest, "open_backend", self.open)
        monkeypatch.setattr(fastest, "is_installed", lambda name: name in seconds)
        monkeypatch.setattr(fastest, "check_precision", lambda name, precision: None)

    def open(self, name: str, source: NetworkFiles, threads: int | None) -> Backend:
        self.loaded.append(name)
        seconds = self.seconds[name]
        if seconds is None:
            raise BackendError(f"{name} refuses")
        return Asleep(name, seconds, self.closed)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_engine(tmp_path_factory.mktemp("measured") / "small.engine")


def source_of(artifact: Artifact) -> NetworkFiles:
    return NetworkFiles(artifact.network_path, artifact.contract, None, artifact)


@pytest.mark.parametrize(
    ("default_s", "other_s", "winner"), [(0.004, 0.002, OTHER), (0.002, 0.004, DEFAULT), (0.004, 0.0039, DEFAULT)]
)
def test_the_faster_is_taken_and_equals_leave_the_default(
    artifact: Artifact,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    default_s: float,
    other_s: float,
    winner: str,
) -> None:
    made = Libraries(monkeypatch, tmp_path, onnxruntime=default_s, openvino=other_s)
    name, reason = fastest.choose_fastest(source_of(artifact), None)
    assert name == winner, reason
    assert reason.startswith(f"timed here at batch {artifact.batch[0]}: onnxruntime ")
    assert ", openvino " in reason
    assert sorted(made.closed) == [DEFAULT, OTHER]
    assert fastest.choose_fastest(source_of(artifact), None) == (name, reason)
    assert made.loaded == [DEFAULT, OTHER], "it was timed twice"


def test_another_engine_machine_or_version_is_timed_again(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = Libraries(monkeypatch, tmp_path, onnxruntime=0.002, openvino=0.001)
    changed = (
        replace(artifact, batch=(4,)),
        replace(artifact, files={"network.onnx": next(iter(artifact.files.values()))}),
    )
    for one in (artifact, changed[0], replace(changed[1], batch=(2,))):
        fastest.choose_fastest(source_of(one), None)
    monkeypatch.setattr(fastest, "processor", lambda: "another")
    fastest.choose_fastest(source_of(artifact), None)
    monkeypatch.setattr(fastest, "version_of", lambda package: "9.9")
    fastest.choose_fastest(source_of(artifact), None)
    assert made.loaded == [DEFAULT, OTHER] * 5


def test_the_default_stays_where_another_could_gain_nothing(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = Libraries(monkeypatch, tmp_path, onnxruntime=0.0, openvino=0.0)
    name, reason = fastest.choose_fastest(source_of(artifact), None)
    assert (name, made.loaded) == (DEFAULT, [DEFAULT])
    assert reason.endswith("ms an evaluation are too few to gain by another")
    monkeypatch.setattr(fastest, "LARGEST_BYTES", 10)
    name, reason = fastest.choose_fastest(source_of(artifact), None)
    assert (name, made.loaded) == (DEFAULT, [DEFAULT])
    assert reason.endswith("GiB of weights are too many to try another")


def test_one_that_is_alone_is_not_timed(artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    why = "the default for fp32 on a CPU"
    made = Libraries(monkeypatch, tmp_path, onnxruntime=0.002)
    assert fastest.choose_fastest(source_of(artifact), None) == (DEFAULT, why)
    assert made.loaded == []
    made = Libraries(monkeypatch, tmp_path, onnxruntime=0.002, openvino=None)
    assert fastest.choose_fastest(source_of(artifact), None) == (DEFAULT, why)
    assert made.closed == [DEFAULT]
    # A default that refuses says so itself when it is opened; another is not taken in its place, and nothing is kept.
    made = Libraries(monkeypatch, tmp_path / "another", onnxruntime=None, openvino=0.002)
    for _ in range(2):
        assert fastest.choose_fastest(source_of(artifact), None) == (DEFAULT, why)
    assert made.loaded == [DEFAULT, DEFAULT]


@pytest.mark.parametrize("failing", [DEFAULT, OTHER])
def test_one_that_fails_on_made_up_inputs_is_not_timed(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failing: str
) -> None:
    made = Libraries(monkeypatch, tmp_path, onnxruntime=0.004, openvino=0.002)

    def bind(self: Asleep, sets: Sequence[Buffers]) -> list[Evaluate]:
        def evaluate() -> torch.Tensor:
            if self.name == failing:
                raise RuntimeError("index out of range")
            time.sleep(self.seconds)
            return sets[0].out

        return [evaluate]

    monkeypatch.setattr(Asleep, "bind", bind)
    assert fastest.choose_fastest(source_of(artifact), None) == (DEFAULT, "the default for fp32 on a CPU")
    assert sorted(made.closed) == sorted(made.loaded)


@pytest.mark.parametrize("other", [0.002, None])
def test_auto_takes_another_where_the_default_refuses_the_network(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other: float | None
) -> None:
    """OpenVINO refuses some graphs of int8 that ONNX Runtime runs."""
    made = Libraries(monkeypatch, tmp_path, onnxruntime=None, openvino=other)
    monkeypatch.setattr(choose, "open_backend", lambda name, source, threads, device: made.open(name, source, threads))
    monkeypatch.setattr(choose, "is_installed", lambda name: name in made.seconds)
    monkeypatch.setattr(choose, "check_precision", lambda name, precision: None)
    cpu = torch.device("cpu")
    if other is None:
        with pytest.raises(BackendError, match="onnxruntime refuses"):
            choose.open_best(source_of(artifact), cpu, "auto", None)
    else:
        opened, reason = choose.open_best(source_of(artifact), cpu, "auto", None)
        assert (opened.name, reason) == (OTHER, "onnxruntime refuses")
    with pytest.raises(BackendError, match="onnxruntime refuses"):
        choose.open_best(source_of(artifact), cpu, DEFAULT, None)  # what is asked for is not replaced


def test_what_cannot_be_kept_is_not_taken(artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Or samples would change from load to load."""
    (tmp_path / "file").write_text("")
    Libraries(monkeypatch, tmp_path / "file", onnxruntime=0.004, openvino=0.001)
    assert fastest.choose_fastest(source_of(artifact), None) == (DEFAULT, "the default for fp32 on a CPU")

    def full(self: cache.Journal, key: str, value: object) -> None:
        raise InputError("no space left")

    Libraries(monkeypatch, tmp_path / "full", onnxruntime=0.004, openvino=0.001)
    monkeypatch.setattr(cache.Journal, "put", full)
    assert fastest.choose_fastest(source_of(artifact), None) == (DEFAULT, "the default for fp32 on a CPU")


@pytest.mark.skipif(os.name == "nt", reason="nothing is locked there")
def test_of_two_that_load_at_once_one_measures(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = Libraries(monkeypatch, tmp_path, onnxruntime=0.004, openvino=0.002)
    found: list[tuple[str, str]] = []
    threads = [
        threading.Thread(target=lambda: found.append(fastest.choose_fastest(source_of(artifact), None)))
        for _ in range(3)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert made.loaded == [DEFAULT, OTHER]


def test_an_engine_samples_with_what_was_found(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The real libraries and the small network, said to be long enough to be timed, its times made up."""
    pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(fastest, "LEAST_MS", 0.0)
    with pfdiff.load(artifact.path, device="cpu", backend=DEFAULT) as plain:
        expected = plain.sample(seeds=[3], nfe=4)
    for name, times in ((OTHER, (2.0, 1.0)), (DEFAULT, (1.0, 2.0))):
        turns = itertools.cycle(times)
        monkeypatch.setattr(fastest, "turn_ms", lambda evaluate, awake_ms, turns=turns: next(turns))
        monkeypatch.setattr(fastest, "processor", lambda name=name: f"where {name} is fast")
        reason = f"timed here at batch 1: {DEFAULT} {times[0]:.3g} ms, {OTHER} {times[1]:.3g} ms"
        for _ in range(2):
            with pfdiff.load(artifact.path, device="cpu") as found:
                assert (found.backend, found.backend_reason) == (name, reason)
                assert (found.sample(seeds=[3], nfe=4) - expected).abs().max() <= 1e-4
