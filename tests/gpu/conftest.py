"""Every test of this folder runs compiled kernels; the shipped network is made once a file."""

from __future__ import annotations

import pytest
import torch

from pfdiff.bench.measuring.gpu_engines import module_of


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")


@pytest.fixture(scope="module")
def fashion() -> torch.nn.Module:
    return module_of("fashion")
