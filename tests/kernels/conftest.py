"""How a kernel runs where there is no GPU."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["interpreter", "plain twin"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernel in Triton's interpreter, or its plain twin."""
    monkeypatch.setenv("TRITON_INTERPRET", "1" if request.param == "interpreter" else "0")
    return request.param
