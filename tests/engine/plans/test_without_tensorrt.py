"""Plans on machines where TensorRT cannot work or the engine cannot be written to, with a TensorRT that pretends."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pfdiff.engine.artifact import PLANS, Artifact
from pfdiff.engine.backends import choose, registry
from pfdiff.engine.cache import cache_folder
from pfdiff.engine.errors import BackendError
from pfdiff.engine.plans import store
from pfdiff.engine.plans.build import build_plan, timing_path
from pfdiff.engine.plans.key import PlanKey, network_digest

from ...small.engine import write_engine
from ..test_devices import CUDA, Machine, source

NULL = TypeError("pybind11::init(): factory function returned nullptr")  # NVIDIA/TensorRT issues 308, 635, 2913


class Pretended:
    """The module tensorrt as far as a plan is built with it: a network without inputs, built to b"plan"."""

    __version__ = "10.13.3"
    NetworkDefinitionCreationFlag = types.SimpleNamespace(STRONGLY_TYPED=1)
    MemoryPoolType = types.SimpleNamespace(WORKSPACE=0)
    ProfilingVerbosity = types.SimpleNamespace(DETAILED=2)
    BuilderFlag = types.SimpleNamespace(TF32=3)
    ILogger = type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0})
    num_inputs = num_outputs = 0

    def __init__(self) -> None:
        self.timings: list[bytes] = []

    def Builder(self, logger: Any) -> Any:
        return self

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        return types.SimpleNamespace(parse_from_file=lambda path: True)

    def create_network(self, flags: int) -> Any:
        return self

    def create_builder_config(self) -> Any:
        return self

    def create_optimization_profile(self) -> Any:
        return self

    def _nothing(self, *_: Any) -> None: ...

    set_memory_pool_limit = set_flag = clear_flag = add_optimization_profile = set_timing_cache = _nothing

    def create_timing_cache(self, known: bytes) -> Any:
        self.timings.append(known)
        return types.SimpleNamespace(serialize=lambda: b"timings")

    def build_serialized_network(self, network: Any, config: Any) -> bytes:
        return b"plan"


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pretended:
    made = Pretended()
    monkeypatch.setitem(sys.modules, "tensorrt", made)  # type: ignore[arg-type]
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return write_engine(tmp_path / "small.engine")


def key_of(artifact: Artifact) -> PlanKey:
    network = network_digest(artifact)
    return PlanKey("tensorrt", "10.13.3", "sm90", "NVIDIA H200", network, artifact.precision, artifact.batch)


# A null pointer.
def test_a_builder_that_cannot_be_made_is_one_sentence(
    tensorrt: Pretended, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def null(logger: Any) -> Any:
        raise NULL

    monkeypatch.setattr(tensorrt, "Builder", null)
    with pytest.raises(BackendError, match=r"tensorrt 10.13.3 cannot build here: no CUDA driver, or one too old$"):
        build_plan(artifact, key_of(artifact))


def test_auto_goes_on_after_whatever_a_library_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_torch(name: str, *_: Any) -> Any:
        if name != "torch":
            raise NULL
        return types.SimpleNamespace(name=name)

    Machine().install(monkeypatch)
    monkeypatch.setattr(registry, "find_spec", lambda name: name if name in ("tensorrt", "torch") else None)
    monkeypatch.setitem(sys.modules, "tensorrt", Pretended())  # type: ignore[arg-type]
    monkeypatch.setattr(choose, "open_backend", only_torch)
    backend, reason = choose.open_best(source(lambda x, t: x), CUDA, "auto", None)
    assert backend.name == "torch"
    assert "tensorrt: pybind11::init(): factory function returned nullptr" in reason


# A folder that cannot be written to.
def test_the_plan_of_a_read_only_engine_is_kept_in_the_cache_folder(tensorrt: Pretended, artifact: Artifact) -> None:
    (artifact.path / PLANS).write_text("")  # where the folder would be: for root, no permission is missing
    said: list[str] = []
    key = key_of(artifact)
    assert store.obtain_plan(artifact, key, say=said.append) == b"plan"
    assert len(said) == 2  # none is stored; where this one is
    assert said[1].endswith(f"the plan is kept in '{cache_folder() / PLANS}'")
    said.clear()
    assert store.obtain_plan(artifact, key, say=said.append) == b"plan"
    assert said == []
    assert len(tensorrt.timings) == 1, "it was built again"
    other = replace(key, network="0" * 64)
    assert store.cached_path(other) != store.cached_path(key)


def test_a_plan_that_can_be_kept_nowhere_is_used_all_the_same(
    tensorrt: Pretended, artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (artifact.path / PLANS).write_text("")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said: list[str] = []
    assert store.obtain_plan(artifact, key_of(artifact), say=said.append) == b"plan"
    assert said[-1].endswith("the plan is not kept and is built again by the next load")


def test_somebody_elses_plan_in_the_cache_is_not_loaded(
    tensorrt: Pretended, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    (artifact.path / PLANS).write_text("")
    key = key_of(artifact)
    store.obtain_plan(artifact, key)
    path = store.cached_path(key)
    path.write_bytes(b"evil")
    assert store.obtain_plan(artifact, key) == b"plan"
    assert path.read_bytes() == b"plan"


# TensorRT's timings.
def test_the_first_build_keeps_its_timings(tensorrt: Pretended, artifact: Artifact) -> None:
    key = key_of(artifact)
    assert not (artifact.path / PLANS).exists()
    build_plan(artifact, key)
    assert timing_path(artifact, key).read_bytes() == b"timings"
    build_plan(artifact, key)
    assert tensorrt.timings == [b"", b"timings"]
