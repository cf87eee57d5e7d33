"""How the CUDA loop runs where there is no GPU, and the CPU loop without its compiled part."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pfdiff.engine.runtime import cpu_loop, noise


@pytest.fixture(params=["eager", "kernels"])
def ops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """On CPU tensors: by plain torch, and by the kernels in Triton's interpreter."""
    if request.param == "kernels":
        pytest.importorskip("triton", reason="the kernels need Triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1" if request.param == "kernels" else "0")
    return request.param


@pytest.fixture
def only_python(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on the CPU loop runs in NumPy, draws included."""

    def call() -> None:
        monkeypatch.setattr(cpu_loop, "walk_compiled", None)
        monkeypatch.setattr(noise, "fill_compiled", None)

    return call


@pytest.fixture(params=["compiled", "python"])
def walk(request: pytest.FixtureRequest, only_python: Callable[[], None]) -> None:
    """Both ways through the evaluations on a CPU."""
    if request.param == "python":
        only_python()
    elif cpu_loop.walk_compiled is None:
        pytest.skip("engine/runtime/_cpu.cpp was not compiled when pfdiff was installed")
