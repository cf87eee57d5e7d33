"""A cache of its own for each test of a search, and the perfect network."""

from __future__ import annotations

from pathlib import Path

import pytest

import pfdiff

from .analytic import SCHEDULE, Analytic


@pytest.fixture
def network() -> pfdiff.Network:
    return pfdiff.Network(Analytic(), shape=(1, 2, 2), schedule=SCHEDULE, prediction="eps", name="analytic")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what pfdiff keeps."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pfdiff"
