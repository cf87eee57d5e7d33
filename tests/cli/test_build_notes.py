"""What `pfdiff build` leaves out of a network stands in a line that stays."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pfdiff
from pfdiff.cli import main

NETWORK = """
from torch import nn

class Optional(nn.Module):
    def forward(self, x, timesteps, y=None):
        return 0.5 * x if y is None else y.reshape(-1, 1, 1, 1) * x

def load():
    return Optional()
"""


def test_an_optional_input_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    program = pfdiff.compile("ddim", "linear:1000", 2, "uniform")

    @contextlib.contextmanager
    def build(*_: Any, progress: Any, **__: Any) -> Iterator[Any]:
        progress("net.engine is written: NFE 2")
        yield SimpleNamespace(programs={2: program})

    monkeypatch.setattr(pfdiff, "build", build)
    words = ["--nfe", "2", "--shape", "1x4x4", "--schedule", "linear:1000", "--prediction", "eps"]
    monkeypatch.setattr(sys, "argv", ["pfdiff", "build", f"{tmp_path / 'net.py'}:load", *words])
    with contextlib.suppress(SystemExit):
        main()
    out, err = capsys.readouterr()
    assert out == "net.engine is written: NFE 2\n"
    assert "optional y keeps its default" in err
    assert "--condition y:" in err
