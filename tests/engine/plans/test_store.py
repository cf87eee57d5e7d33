"""Plans kept in an engine: read again as they were stored, refused when they are not exactly what is needed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import pfdiff
from pfdiff.engine.plans import seal, store
from pfdiff.engine.plans.key import plan_key

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")


def test_stored_plan_is_read_again(small):
    key = plan_key(small, "tensorrt_rtx", "sm89")
    path = store.store_plan(small, key, b"plan")
    assert store.read_plan(small, key) == b"plan"
    assert store.stored_plans(small)[path] == key


def damaged_by(change):
    def damage(path: Path) -> None:
        record = json.loads(path.with_suffix(".json").read_text())
        change(record)
        path.with_suffix(".json").write_text(json.dumps(record))

    return damage


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(b"plbn"), "was changed after it was built"),
        (lambda path: path.unlink(), "no plan for sm89 is stored"),
        (lambda path: path.with_suffix(".json").write_text("{"), "has no readable record"),
        (damaged_by(lambda record: record["key"].update(version="1.6.0")), "was built for version 1.6.0, this is "),
        (damaged_by(lambda record: record["key"].update(capability="sm86")), "built for capability sm86, this is sm89"),
        (damaged_by(lambda record: record["key"].update(precision="fp16")), "built for precision fp16, this is fp32"),
        (damaged_by(lambda record: record.update(seal="0" * 64)), "was not built by this user"),
    ],
)
def test_refused_with_the_right_sentence(small, damage, says):
    key = plan_key(small, "tensorrt_rtx", "sm89")
    damage(store.store_plan(small, key, b"plan"))
    with pytest.raises(pfdiff.EngineFileError, match=says) as caught:
        store.read_plan(small, key)
    assert "\n" not in str(caught.value)


def test_a_plan_of_another_gpu_is_named(small, tmp_path):
    here = dataclasses.replace(small, path=tmp_path)
    store.store_plan(here, plan_key(here, "tensorrt_rtx", "sm86"), b"plan")
    with pytest.raises(pfdiff.EngineFileError, match=r"no plan for sm89 .* built for capability sm86, this is sm89"):
        store.read_plan(here, plan_key(here, "tensorrt_rtx", "sm89"))


def test_somebody_elses_plan_needs_trust(small, monkeypatch, tmp_path):
    key = plan_key(small, "tensorrt_rtx", "sm80")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "theirs"))
    monkeypatch.setattr(seal, "_PROCESS_SECRET", b"theirs".ljust(32))
    store.store_plan(small, key, b"plan")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "ours"))
    monkeypatch.setattr(seal, "_PROCESS_SECRET", b"ours".ljust(32))
    with pytest.raises(pfdiff.EngineFileError, match="was not built by this user and a plan is executable code"):
        store.read_plan(small, key)
    assert store.read_plan(small, key, trust=True) == b"plan"


def test_an_empty_secret_is_replaced(monkeypatch, tmp_path):
    """What a kill while it was written left: a key that everybody knows."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = tmp_path / "pfdiff" / "plan-secret"
    path.parent.mkdir()
    path.touch()
    made = seal._secret()
    assert made == path.read_bytes() == seal._secret()
    assert len(made) == seal.SECRET_BYTES
    assert path.stat().st_mode & 0o077 == 0
    assert [one.name for one in path.parent.iterdir()] == ["plan-secret"]


def test_a_refused_plan_is_built_again(small, monkeypatch):
    key = plan_key(small, "tensorrt_rtx", "sm75")
    store.store_plan(small, key, b"old").write_bytes(b"new")
    monkeypatch.setattr(store, "build_plan", lambda *_: b"fresh")
    said: list[str] = []
    assert store.obtain_plan(small, key, say=said.append) == b"fresh"
    assert "was changed after it was built" in said[0]
    assert store.obtain_plan(small, key, say=said.append) == b"fresh"
    assert len(said) == 1
