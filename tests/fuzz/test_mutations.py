"""Damaged inputs of every kind: each is used, or ends in one clear error, in bounded time and memory.

A hundred of the thousands that `bench/studies/mutations` has run; the same ones every time.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from pfdiff.bench.studies import mutations
from pfdiff.bench.studies.mutants.mutated_engines import Kind
from pfdiff.bench.studies.mutants.mutated_inputs import KINDS
from pfdiff.bench.studies.mutants.mutators import of_bytes, of_json, of_text
from pfdiff.engine.errors import InputError

from ..engine.test_artifact import environment

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "mutations.json"
WHOLE = {"engines": 5000, "onnx": 1000}  # cases of a whole run; 500 of every other kind


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is bounded by Linux's RLIMIT_DATA")
def test_damaged_inputs_end_in_one_clear_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pfdiff.bench.studies.mutations", "--share", "0.01", "--seed", "7"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "found.json")],
        env=environment(),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = json.loads((tmp_path / "found.json").read_text())["kinds"]
    assert set(kinds) == set(KINDS)
    outcomes = {name for found in kinds.values() for name in found["outcomes"]}
    assert outcomes <= {"used", "EngineFileError", "InputError", "BackendError"}
    assert len(outcomes) >= 3


def test_the_stored_run_is_a_whole_one_without_faults() -> None:
    kinds = json.loads(RESULTS.read_text())["kinds"]
    assert {name: found["cases"] for name, found in kinds.items()} == {name: WHOLE.get(name, 500) for name in KINDS}
    assert not any(found["faults"] for found in kinds.values())
    assert all(found["slowest_s"] < 5 and found["largest_mib"] < 1024 for found in kinds.values())


# The study itself.
class Planted(Kind):
    """An input with which something is wrong, by its number."""

    def damage(self, draw: random.Random) -> None:
        pass

    def use(self) -> bool:
        raise self.error  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (InputError("one line"), ""),
        (InputError("x" * 400), "a message of 400 characters"),
        (KeyError("name"), "KeyError: \"'name'\" at "),
        (MemoryError(), "MemoryError"),
        (SystemExit(3), "SystemExit: '3'"),
    ],
)
def test_a_fault_is_seen(tmp_path: Path, error: BaseException, fault: str) -> None:
    kind = Planted(tmp_path)
    kind.error = error  # type: ignore[attr-defined]
    found = mutations.run_case(kind, "0")["fault"]
    assert found.startswith(fault)
    assert bool(found) == bool(fault)


def test_the_same_seed_makes_the_same_damage() -> None:
    content = {"a": [1, 2, {"b": "text"}], "c": 0.5}
    for damage, valid in ((of_bytes, b"0123456789"), (of_text, "0-15"), (of_json, content)):
        made = [[repr(damage(random.Random(seed), valid)) for seed in range(200)] for _ in range(2)]  # type: ignore[arg-type]
        assert made[0] == made[1]
        assert len(set(made[0])) > 60
    assert content == {"a": [1, 2, {"b": "text"}], "c": 0.5}
