"""How the CUDA loop runs where there is no GPU."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["eager", "kernels"])
def ops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """On CPU tensors: by plain torch, and by the kernels in Triton's interpreter."""
    if request.param == "kernels":
        pytest.importorskip("triton", reason="the kernels need Triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1" if request.param == "kernels" else "0")
    return request.param
