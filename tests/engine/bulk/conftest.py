"""One small engine for all tests of bulk runs, and what an undisturbed run of it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ...small.bulk import run, tree
from ...small.engine import write_engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_engine(tmp_path_factory.mktemp("engines") / "small.engine").path


@pytest.fixture(scope="module")
def whole(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run writes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run(engine, out)
    return tree(out)
