"""backend="fastest": the one that evaluates in the least time wins, the others are closed, and the reason says so."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import final

import pytest
import torch

import pfdiff
from pfdiff.engine.artifact import Artifact
from pfdiff.engine.backends import fastest
from pfdiff.engine.backends.abstract import Backend, Buffers, Evaluate, Source
from pfdiff.engine.errors import BackendError, InputError

from .small_engine import Small, write_engine


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_engine(tmp_path_factory.mktemp("fastest") / "small.engine")


@final
class Asleep(Backend):
    """Takes a given time to evaluate nothing, and `waking` more where the last evaluation is 2 ms ago."""

    def __init__(self, name: str, seconds: float, waking: float = 0.0) -> None:
        self.name, self.seconds, self.waking, self.last, self.closed = name, seconds, waking, 0.0, False
        self.device, self.dtype, self.threads, self.description = torch.device("cpu"), torch.float32, None, name

    def bind(self, sets: Sequence[Buffers]) -> list[Evaluate]:
        def evaluate() -> torch.Tensor:
            asleep = time.perf_counter() > self.last + 0.002
            time.sleep(self.seconds + (self.waking if asleep else 0))
            self.last = time.perf_counter()
            return sets[0].out

        return [evaluate]

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("winner", ["onnxruntime", "openvino"])
def test_the_one_that_takes_least_is_kept(artifact: Artifact, monkeypatch: pytest.MonkeyPatch, winner: str) -> None:
    fakes = {name: Asleep(name, 0.002 if name == winner else 0.03) for name in ("onnxruntime", "openvino")}

    def open_backend(name: str, source: Source, threads: int | None) -> Backend:
        if name == "torch":
            raise BackendError("it refuses")
        return fakes[name]

    monkeypatch.setattr(fastest, "open_backend", open_backend)
    source = Source(artifact.network_path, artifact.contract, Small(), artifact)
    kept, reason = fastest.open_fastest(source, None)
    assert kept is fakes[winner]
    assert [name for name, one in fakes.items() if one.closed] == [name for name in fakes if name != winner]
    assert reason.startswith(f"the fastest here at batch {artifact.batch[0]}: onnxruntime ")
    assert "openvino " in reason
    assert reason.endswith("; torch: it refuses")


def test_threads_that_are_slow_to_wake_count(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Awake, openvino is faster; a sample's evaluations find it asleep: 50 ms before five of 0, against five of 2."""
    fakes = {"onnxruntime": Asleep("onnxruntime", 0.002), "openvino": Asleep("openvino", 0.0, waking=0.05)}
    monkeypatch.setattr(fastest, "open_backend", lambda name, source, threads: fakes[name])
    kept, reason = fastest.open_fastest(Source(artifact.network_path, artifact.contract, None, artifact), None)
    assert kept is fakes["onnxruntime"], reason


def test_an_engine_samples_with_what_was_found(artifact: Artifact) -> None:
    with pfdiff.load(artifact.path, backend="fastest") as found, pfdiff.load(artifact.path) as plain:
        assert found.backend in ("onnxruntime", "openvino")
        assert found.backend_reason.startswith("the fastest here")
        difference = found.sample(seeds=[3], nfe=4) - plain.sample(seeds=[3], nfe=4)
        assert difference.abs().max() <= 1e-4


def test_none_that_runs_is_an_error_with_every_reason(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, source: Source, threads: int | None) -> Backend:
        raise BackendError("it refuses")

    monkeypatch.setattr(fastest, "open_backend", refuse)
    with pytest.raises(BackendError, match=r"no backend runs .*onnxruntime: it refuses; openvino: it refuses"):
        pfdiff.load(artifact.path, backend="fastest")


def test_bulk_runs_need_a_named_backend(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'fastest' may be another in each worker"):
        pfdiff.generate(artifact.path, 4, tmp_path / "out", backend="fastest")
