"""cli/demo/policy.py: the shipped policy drives, in few episodes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pfdiff.cli import main
from pfdiff.cli.demo import policy as demo_policy
from pfdiff.export.zoo import gates_samplers

EPISODES, NFE = 4, (1, 4)


def test_it_prints_success_and_time_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_policy, "EPISODES", EPISODES)
    monkeypatch.setattr(demo_policy, "DRAWN", 3)
    monkeypatch.setattr(demo_policy, "SECONDS", 0.01)
    monkeypatch.setattr(gates_samplers, "NFE", NFE)
    report = demo_policy.run(tmp_path / "policy.gif", lambda line: None)

    # What it found.
    assert [(one.sampler, one.nfe) for one in report.lines] == [(n, nfe) for n in gates_samplers.NAMES for nfe in NFE]
    assert report.expert == 1
    rates = {(one.sampler, one.nfe): one.success for one in report.lines}
    assert all(0 <= rate <= 1 and rate * EPISODES == round(rate * EPISODES) for rate in rates.values())
    assert all(0 < one.ms < 1000 for one in report.lines)
    assert min(rates[name, 4] for name in gates_samplers.NAMES) >= 0.75  # of 256 episodes, 98 to 100 % succeed

    # What it prints.
    demo_policy.print_demo(report)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[:-1])) <= 80
    assert f"gates, {EPISODES} episodes; the expert reaches the goal in 100.0%" in printed
    firsts = [line.split()[0] for line in printed.splitlines() if line.strip()]
    assert all(firsts.count(name) == 2 for name in gates_samplers.NAMES)  # success, and ms a chunk

    # The animation: four panels side by side that move.
    with Image.open(tmp_path / "policy.gif") as picture:
        assert picture.width > 4 * 200
        assert picture.n_frames > 20  # pyright: ignore[reportAttributeAccessIssue]  # of a GIF
        first = picture.convert("L").tobytes()
        picture.seek(15)
        assert picture.convert("L").tobytes() != first

    # The engine that it leaves.
    assert main(["info", str(report.engine)]) == 0
    assert "gates" in capsys.readouterr().out


def test_a_place_that_is_no_gif_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "policy", "-o", str(tmp_path / "policy.png")]) == 2
    assert capsys.readouterr().err == f"pfdiff: output {tmp_path}/policy.png: expected a file that ends in .gif\n"
    assert not list(tmp_path.iterdir())


def test_a_folder_of_somebody_elses_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gates.engine").mkdir()
    (tmp_path / "gates.engine" / "notes.txt").write_text("mine")
    assert main(["demo", "policy", "-o", str(tmp_path / "policy.gif")]) == 2
    assert "holds 'notes.txt', which is no part of an engine" in capsys.readouterr().err
    assert [one.name for one in (tmp_path / "gates.engine").iterdir()] == ["notes.txt"]


def test_a_place_that_cannot_be_written_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "policy.gif").mkdir()
    for place, said in ((tmp_path / "policy.gif", "is a folder"), (tmp_path / "none" / "policy.gif", "is no folder")):
        assert main(["demo", "policy", "-o", str(place)]) == 2
        assert said in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["policy.gif"]
