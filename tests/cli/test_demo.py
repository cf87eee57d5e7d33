"""cli/demo/demo.py: the shipped network end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pfdiff.cli import main
from pfdiff.cli.demo import demo
from pfdiff.cli.demo.demo import print_demo


@pytest.mark.slow
def test_the_demo_draws_every_row_and_pfdiff_is_nearer_to_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "REFERENCE_NFE", 40)
    monkeypatch.setattr(demo, "ROUNDS", 2)
    stages: list[str] = []
    report = demo.run(tmp_path / "demo.png", stages.append)

    # The report.
    assert [(line.solver, line.nfe) for line in report.lines] == [
        ("ddim", 5),
        ("pfdiff:k=2,l=1", 5),
        ("ddim", 8),
        ("pfdiff:k=2,l=1", 8),
        ("dpm++:2m", 40),
    ]
    errors = {(line.solver, line.nfe): line.error for line in report.lines}
    for nfe in (5, 8):
        pfdiff_error, ddim_error = errors["pfdiff:k=2,l=1", nfe], errors["ddim", nfe]
        assert pfdiff_error is not None
        assert ddim_error is not None
        assert 0 < pfdiff_error < ddim_error
    assert all(line.ms is not None and line.ms > 0 for line in report.lines[:-1])
    assert stages

    # The picture: five rows of ten images of 28 pixels, three times magnified.
    page = np.asarray(Image.open(tmp_path / "demo.png"))
    assert page.shape[0] > 5 * 84
    assert page.shape[1] > 10 * 84

    # The engine that it leaves is an engine.
    assert main(["info", str(report.engine)]) == 0
    text = capsys.readouterr().out
    assert "bag" in text
    assert "pfdiff:k=2,l=1" in text


def test_the_next_command_is_one_that_the_shell_finds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = demo.Report(Path("fashion.engine"), Path("demo.png"), "onnxruntime", 10, ())
    monkeypatch.setattr("sys.argv", [".venv/bin/pfdiff", "demo"])
    for found, command in (("/usr/bin/pfdiff", "pfdiff"), (None, ".venv/bin/pfdiff")):
        monkeypatch.setattr("shutil.which", lambda name, found=found: found)
        print_demo(report)
        assert capsys.readouterr().out.splitlines()[-1].startswith(f"next: {command} sample fashion.engine ")


def test_a_bad_place_for_the_picture_is_found_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "-o", str(tmp_path / "demo.npy")]) == 2
    assert capsys.readouterr().err == f"pfdiff: output {tmp_path}/demo.npy: expected a file that ends in .png\n"
    assert not list(tmp_path.iterdir())
