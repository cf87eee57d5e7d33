"""`pfdiff info`: what runs beside the network, and names from files, which are shown and not obeyed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pfdiff.cli import main
from pfdiff.engine.artifact import read_artifact, write_manifest
from pfdiff.engine.runtime import compiled

from ..small.engine import write_engine


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_engine(tmp_path / "small.engine", nfe=(4, 6))
    return tmp_path / "small.engine"


def test_info_says_what_runs_beside_the_network(
    engine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "pfdiff.engine.runtime._cpu"
    for held, folder, words in (
        (object(), compiled.__file__, "compiled"),
        (None, compiled.__file__, None),
        (None, "elsewhere/x.py", "NumPy, since pfdiff was installed without a C++ compiler"),
    ):
        monkeypatch.setitem(sys.modules, name, held)  # None: as if it could not be imported
        monkeypatch.setattr(compiled, "__file__", folder)
        built = any(Path(folder).parent.glob("_cpu*.so"))
        expected = words or f"NumPy, since {'the compiled part cannot be loaded' if built else 'pfdiff was installed'}"
        assert main(["info", "small.engine"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert f"beside the network {expected}" in text
        assert main(["info", "small.engine", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["beside_the_network"].startswith(expected)


# What comes from files is shown, not obeyed.
def test_info_shows_names_as_they_are(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = read_artifact(engine)
    provenance = {**artifact.provenance, "[/red]": "[bold]\x1b]0;title\x07", "made\x1b[2J": "x"}
    write_manifest(replace(artifact, provenance=provenance))
    assert main(["info", "small.engine"]) == 0
    text = capsys.readouterr().out
    assert "[/red]" in text
    assert "[bold]\\x1b]0;title\\x07" in text
    assert "\x1b" not in text
    assert main(["info", "small.engine", "--nfe", "4"]) == 0
    lora = {"file": "style.safetensors", "sha256": 64 * "d", "strength": 0.8}
    hub = {"repository": "owner/name", "commit": "abc"}
    write_manifest(replace(artifact, provenance={**artifact.provenance, "lora": [lora, "x"], "hub": hub}))
    assert main(["info", "small.engine"]) == 0
    assert "owner/name at abc" in capsys.readouterr().out
    write_manifest(replace(artifact, provenance={**artifact.provenance, "lora": [lora]}))
    assert main(["info", "small.engine"]) == 0
    assert "style.safetensors:0.8, sha256 dddddddddddd\n" in "".join(
        f"{line.rstrip()}\n" for line in capsys.readouterr().out.splitlines()
    )


def test_messages_hold_no_control_characters(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["info", f"{tmp_path}/x\x1b[31m[/red].engine"]) == 2
    error = capfd.readouterr().err
    assert "x\\x1b[31m[/red].engine" in error
    assert "\x1b" not in error
