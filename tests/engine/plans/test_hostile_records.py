"""Records of plans that somebody damaged or planted: one sentence, at once, and no plan is used. Needs no TensorRT."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pfdiff.engine.artifact import Artifact
from pfdiff.engine.errors import EngineFileError
from pfdiff.engine.plans import store
from pfdiff.engine.plans.key import PlanKey

from ...small.engine import write_engine

KEY = PlanKey("tensorrt", "10.9", "sm90", "GPU", "0" * 64, "fp32", (1, 8))


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    artifact = write_engine(tmp_path / "small.engine")
    store.store_plan(artifact, KEY, b"plan")
    return artifact


def test_what_was_stored_is_read(artifact: Artifact) -> None:
    assert store.read_plan(artifact, KEY) == b"plan"
    assert list(store.stored_plans(artifact).values()) == [KEY]


def with_fields(**fields: Any) -> Callable[[Path], object]:
    def damage(record: Path) -> None:
        record.write_text(json.dumps({**json.loads(record.read_text()), **fields}))

    return damage


def instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def damage(record: Path) -> None:
        record.unlink()
        make(record)

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a pipe": instead(os.mkfifo),
    "an endless device": instead(lambda path: path.symlink_to("/dev/zero")),
    "a folder": instead(lambda path: path.mkdir()),
    "a file of 2 TiB": lambda path: os.truncate(path, 1 << 41),
    "no text": lambda path: path.write_bytes(b"\xff\x00"),
    "a list": lambda path: path.write_text("[]"),
    "900 levels": lambda path: path.write_text("[" * 900 + "]" * 900),
    "no hash": with_fields(sha256=None),
    "a hash that is no ASCII": with_fields(sha256="é" * 64),
    "a seal that is no ASCII": with_fields(seal="é"),
    "a key that is a list": with_fields(key=[1]),
    "a key of pairs": with_fields(key=[["flavour", "tensorrt"]]),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_record_that_cannot_be_read(artifact: Artifact, case: str) -> None:
    DAMAGES[case](store.plan_path(artifact, KEY).with_suffix(".json"))
    before = time.monotonic()
    with pytest.raises(EngineFileError, match=r"has no readable record .*; it is built again") as caught:
        store.read_plan(artifact, KEY)
    assert list(store.stored_plans(artifact).values()) == [None]
    assert time.monotonic() - before < 5
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "key",
    [
        {"flavour": 3},
        {"batch": 1},
        {"batch": [None]},
        {"tf32": "no"},
        {"version": "1\x1b[2J\u202e"},
        {"network": "x" * 10**5},
    ],
)
def test_a_key_of_other_types_is_another_plan(artifact: Artifact, key: dict[str, Any]) -> None:
    record = store.plan_path(artifact, KEY).with_suffix(".json")
    held = json.loads(record.read_text())
    record.write_text(json.dumps({**held, "key": {**held["key"], **key}}))
    with pytest.raises(EngineFileError, match="was built for") as caught:
        store.read_plan(artifact, KEY)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
    store.stored_plans(artifact)


def test_a_plan_that_is_a_link_is_not_read(artifact: Artifact, tmp_path: Path) -> None:
    path = store.plan_path(artifact, KEY)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EngineFileError, match="has no readable record"):
        store.read_plan(artifact, KEY)
