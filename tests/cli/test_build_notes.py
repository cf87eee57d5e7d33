"""What `pfdiff build` leaves out of a network stands in a line that stays."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pfdiff
from pfdiff.cli import main
from pfdiff.cli.output.figures import as_name, narrow
from pfdiff.engine.api import Engine

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

    def built(*_: Any, progress: Any, **__: Any) -> Any:
        progress("net.engine is written: NFE 2")
        return SimpleNamespace(artifact=SimpleNamespace(programs={2: program}), is_large_on_cpu=True)

    monkeypatch.setattr("pfdiff.export.build.built", built)
    words = ["--nfe", "2", "--shape", "1x4x4", "--schedule", "linear:1000", "--prediction", "eps"]
    monkeypatch.setattr(sys, "argv", ["pfdiff", "build", f"{tmp_path / 'net.py'}:load", *words])
    with contextlib.suppress(SystemExit):
        main()
    out, err = capsys.readouterr()
    assert out == "net.engine is written: NFE 2\n"
    assert "optional y keeps its default" in err
    assert "--condition y:" in err


@pytest.mark.parametrize(("large", "opened"), [(0, 0), (1 << 30, 1)])
def test_a_large_engine_is_not_loaded_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int, opened: int
) -> None:
    """Loading it would take more memory than the build. A small one shows that it works here."""
    (tmp_path / "net.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pfdiff.export.build.LARGE_BYTES", large)
    calls: list[Path] = []

    def opens(artifact: Any, **_: Any) -> Any:
        calls.append(artifact.path)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(Engine, "open", opens)
    words = ["--nfe", "2", "--shape", "1x4x4", "--schedule", "linear:1000", "--prediction", "eps", "--solver", "ddim"]
    assert main(["build", "net.py:load", *words, "--device", "cpu", "-o", "net.engine"]) == 0
    assert calls == [tmp_path.resolve() / "net.engine"] * opened


def test_a_choice_of_samplers_fits_80_columns() -> None:
    line = (
        "sampler by measurement (600 calls, 64 seeds, 12.3 s): NFE 4 pfdiff:k=2,l=1 on karras in eps, "
        "NFE 8 ipndm:order=2 on trailing in x0 (grid diffusers keeps the scheduler's own times); "
        "pfdiff tune may find a better one in about 25,000 evaluations for each NFE"
    )
    assert narrow(line).splitlines() == [
        "sampler by measurement (600 calls, 64 seeds, 12.3 s): NFE 4 pfdiff:k=2,l=1 on",
        "  karras in eps, NFE 8 ipndm:order=2 on trailing in x0",
        "  grid diffusers keeps the scheduler's own times",
        "  pfdiff tune may find a better one in about 25,000 evaluations for each NFE",
    ]
    assert narrow("int8: 2 layers") == "int8: 2 layers"


def test_names_are_shown_on_one_line_without_what_a_terminal_obeys() -> None:
    assert as_name("a\x1b[31m\nb.npy") == "a\\x1b[31m\\nb.npy"
