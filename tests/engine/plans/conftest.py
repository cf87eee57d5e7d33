"""An artifact whose plan need not be built, and a secret of each test's own."""

from __future__ import annotations

import pytest

import pfdiff
from pfdiff.engine.artifact import Artifact, records_of


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Artifact:
    """An artifact whose plan need not be built: the stored bytes are ours."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "network.onnx").write_bytes(b"network")
    contract = pfdiff.Contract(name="small", shape=(3, 8, 8), schedule="vp", prediction="eps")
    program = pfdiff.compile("ddim", "vp", 2)
    return Artifact(folder, contract, (1,), "fp32", {2: program}, {}, records_of(folder))
