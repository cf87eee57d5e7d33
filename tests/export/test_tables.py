"""Tables that travel: written, read, typed in by hand, and refused where they do not belong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pfdiff
from pfdiff.cli import main
from pfdiff.engine.artifact import read_artifact, write_manifest
from pfdiff.engine.errors import InputError
from pfdiff.export.tables import export_table, import_table, read_table

from ..small.engine import write_engine


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An engine of a network with a digest, and with the record of a search."""
    artifact = write_engine(tmp_path / "small.engine")
    nfe = min(artifact.programs)
    record = {"nfe": nfe, "ranking": [{"solver": "mine", "grid": "uniform", "error": 0.1, "held_out_error": 0.2}]}
    held = {**artifact.provenance, "network_digest": "a" * 64, "search": {str(nfe): record}}
    write_manifest(replace(artifact, provenance=held))
    return artifact.path


def first(engine: Path) -> int:
    return min(read_artifact(engine).programs)


def test_a_table_comes_back_as_it_went(engine: Path, tmp_path: Path) -> None:
    file, nfe = tmp_path / "table.json", first(engine)
    before = read_artifact(engine)
    written = export_table(engine, nfe, file)
    read = read_table(file)
    assert read.program.digest == written.program.digest == before.programs[nfe].digest
    assert read.network == {"name": "small", "digest": "a" * 64}
    assert import_table(file, engine).digest == before.programs[nfe].digest
    after = read_artifact(engine)
    assert {n: one.digest for n, one in after.programs.items()} == {n: one.digest for n, one in before.programs.items()}
    assert after.provenance["search"] == before.provenance["search"]


def test_a_table_of_another_network_is_refused_unless_it_is_asked_for(engine: Path, tmp_path: Path) -> None:
    file, nfe = tmp_path / "table.json", first(engine)
    export_table(engine, nfe, file)
    content = json.loads(file.read_text())
    content["network"]["digest"] = "b" * 64
    file.write_text(json.dumps(content))
    manifest = (engine / "engine.json").read_bytes()
    with pytest.raises(InputError, match=r"was made for 'small' b{12}, the engine holds 'small' a{12}; tune"):
        import_table(file, engine)
    assert (engine / "engine.json").read_bytes() == manifest
    said: list[str] = []
    import_table(file, engine, another_network=True, say=said.append)
    assert any("do not hold here" in line for line in said)


TYPED: dict[str, Any] = {
    "name": "two by hand",
    "schedule": "linear:1000",
    "prediction": "eps",
    "basis": "eps",
    "times": [999, 499],
    "rows": [[1], [0.3, 0.9], [0.1, 0.2, -0.3]],
}


def test_a_table_typed_in_runs(engine: Path, tmp_path: Path) -> None:
    file = tmp_path / "typed.json"
    file.write_text(json.dumps({"format": "pfdiff-table 1", "table": TYPED}))
    assert import_table(file, engine).nfe == 2
    with pfdiff.load(engine, device="cpu", backend="onnxruntime") as loaded:
        assert loaded.sample(seeds=[0], nfe=2).shape[0] == 1
        assert loaded.programs[2].solver == "two by hand"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("[]", "expected 'pfdiff-table 1'"),
        ("{", "not JSON"),
        ('{"format": "pfdiff-table 2"}', "pfdiff-table 2.*, expected"),
        ('{"format": "pfdiff-table 1"}', "neither 'program' nor 'table'"),
        ('{"format": "pfdiff-table 1", "network": 3, "table": {}}', "network 3, expected"),
        ('{"format": "pfdiff-table 1", "search": 3, "table": {}}', "search 3, expected"),
        ('{"format": "pfdiff-table 1", "table": 3}', "table 3, expected"),
        ('{"format": "pfdiff-table 1", "program": {}}', "not a program"),
        ({"times": "999"}, "times '?999'?, expected a list"),
        ({"rows": [[1], ["x", 2], [1, 2, 3]]}, "rows .* expected lists of numbers"),
        ({"basis": 3}, "basis 3, expected a text"),
        ({"more": 1}, "unknown field '?more'?"),
        ({"clip": "1"}, "clip '?1'?, expected a number"),
        ({"schedule": "nothing"}, "schedule"),
    ],
)
def test_what_is_no_table_is_refused_in_a_line(content: Any, match: str, engine: Path, tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    whole = content if isinstance(content, str) else {"format": "pfdiff-table 1", "table": {**TYPED, **content}}
    file.write_text(whole if isinstance(whole, str) else json.dumps(whole))
    with pytest.raises(InputError, match=match) as caught:
        import_table(file, engine)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "match"),
    [({"schedule": "cosine:1000"}, "schedule cosine:1000"), ({"prediction": "v"}, "prediction v, the engine's")],
)
def test_a_table_for_another_contract_is_refused(change: Any, match: str, engine: Path, tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    file.write_text(json.dumps({"format": "pfdiff-table 1", "table": {**TYPED, **change}}))
    with pytest.raises(InputError, match=match):
        import_table(file, engine)


def test_the_command_line(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, nfe = tmp_path / "table.json", first(engine)
    assert main(["table", "export", str(engine), "--nfe", str(nfe), "-o", str(file)]) == 0
    assert main(["table", "import", str(file), str(engine)]) == 0
    assert f"NFE {nfe}" in capsys.readouterr().out
    assert main(["table", "import", str(tmp_path / "none.json"), str(engine)]) == 2
    assert main(["table", "export", str(engine), "--nfe", "77", "-o", str(file)]) == 2
    assert capsys.readouterr().err.count("\n") == 2
