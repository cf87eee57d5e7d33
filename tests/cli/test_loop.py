"""`pfdiff bench --loop` on an engine small enough to keep up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pfdiff.cli import main
from pfdiff.cli.loop import lines_of, rate_of
from pfdiff.engine.errors import InputError
from pfdiff.engine.runtime.timing.rate import RateReport

from ..small.engine import write_engine


def test_a_loop_is_driven_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_engine(tmp_path / "small.engine", nfe=(3, 5)).path
    words = ["bench", str(path), "--loop", "100Hz", "--seconds", "0.2", "--json", str(tmp_path / "loop.json")]
    assert main([*words, "--backend", "onnxruntime", "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert "100 Hz, 0.2 s each, batch 1" in said
    assert max(map(len, said.splitlines())) <= 80
    record = json.loads((tmp_path / "loop.json").read_text())
    assert [(one["nfe"], one["ticks"], one["load"]) for one in record["loop"]] == [(3, 20, 0), (5, 20, 0)]
    assert all(len(one["call_ms"]) == 4 for one in record["loop"])
    assert record["machine"]


def test_lines_have_the_width_of_a_terminal() -> None:
    one = RateReport(50, 60, 3000, 12, 1, (1.5, 99.9, 100.1, 12345.6), (0.1, 0.2, 0.3, 9999.9), (1, 2, 3, 4), 123.4)
    calls, late = lines_of(16, one)
    assert len(calls) == len(late) == 80
    assert calls.split() == ["16", "3000", "12", "call", "1.500", "99.900", "100.1", "12345.6"]
    assert late.split() == ["late", "0.100", "0.200", "0.300", "9999.9", "123.4"]


@pytest.mark.parametrize("text", ["0Hz", "fast", "-5", "50kHz", "", "1e9"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected calls a second"):
        rate_of(text)
    assert rate_of("50Hz") == rate_of("50") == 50
    assert rate_of("12.5 hz") == 12.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--load", "1"], "--load is of --loop"),
        (["--loop", "50Hz", "--batch", "4"], "leave --batch out"),
        (["--loop", "50Hz", "--nfe", "7"], "--nfe 7"),
        (["--loop", ""], "--loop '', expected calls a second"),
        (["--loop", "50Hz", "--seconds", "0"], "a time of at least one tick"),
        (["--loop", "50Hz", "--seconds", "-1"], "a time of at least one tick"),
        (["--loop", "50Hz", "--seconds", "nan"], "a time of at least one tick"),
        (["--loop", "100000", "--seconds", "1e12"], "at most 10,000,000"),
        (["--loop", "50Hz", "--load", "100000"], "--load 100000, expected at most 256"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_engine(tmp_path / "small.engine", nfe=(3,)).path
    assert main(["bench", str(path), *words]) != 0
    assert said in capsys.readouterr().err
