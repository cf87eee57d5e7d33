"""bench/studies/planted.py: of the updates that a benchmark times, every tenth is done twice."""

from __future__ import annotations

from pathlib import Path

import pytest

import pfdiff
from pfdiff.bench.studies.planted import plant_updates
from pfdiff.engine.runtime.cpu_loop import Bucket, CpuLoop
from pfdiff.engine.runtime.loop import Tables

from ..small.engine import write_engine


@pytest.mark.parametrize(("slower", "done"), [(False, 240), (True, 264)])
@pytest.mark.parametrize("nfe", [4, 6])
def test_a_tenth_of_the_updates_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nfe: int, slower: bool, done: int
) -> None:
    monkeypatch.setattr(CpuLoop, "updates", CpuLoop.updates)  # so that it is undone
    plant_updates(slower=slower)
    update, count = Bucket.update, 0

    def counted(self: Bucket, tables: Tables, n: int, here: int) -> bool:
        nonlocal count
        count += 1
        return update(self, tables, n, here)

    monkeypatch.setattr(Bucket, "update", counted)
    with pfdiff.load(write_engine(tmp_path / "small.engine").path, "cpu", "onnxruntime") as engine:
        updates = engine.parts(nfe, 8).updates
        for _ in range(240 // nfe):
            updates()
    assert count == done
