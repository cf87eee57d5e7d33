"""Every way in which a bulk run can be cut short, and the folders that it cannot use: what is finished is kept."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pfdiff
from pfdiff.engine import atomic
from pfdiff.engine.artifact import read_artifact
from pfdiff.engine.bulk import shards
from pfdiff.engine.bulk import worker as work
from pfdiff.engine.bulk.recipe import make_recipe
from pfdiff.engine.errors import InputError

from ...small.bulk import COUNT, NAMES, SIZE, image_engine, run, stop_after, tree
from ...small.engine import write_engine


# Cut short and repeated.
@pytest.mark.parametrize("format", ["npz", "png"])
def test_an_interrupted_run_goes_on(engine: Path, tmp_path: Path, format: str) -> None:
    engine = engine if format == "npz" else image_engine(tmp_path)
    out = tmp_path / "out"
    run(engine, tmp_path / "whole", format=format)
    with pytest.raises(KeyboardInterrupt):
        run(engine, out, format=format, progress=stop_after(2))
    before = {path: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    assert len(before) == 2

    # Unfinished work: a shard the manifest does not know, and what a killed worker leaves.
    left = out / ".shard-000002.npz-0123.part"
    if format == "png":
        left.mkdir()
        (out / "shard-000002").mkdir()
    (left / "000014.png" if format == "png" else left).write_bytes(b"half")
    (out / "shard-000002" / "000014.png" if format == "png" else out / NAMES[2]).write_bytes(b"half")

    done = run(engine, out, format=format)
    assert (done.made, done.shards) == (2, 4)
    assert tree(out) == tree(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert run(engine, out, format=format).made == 0


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked there")
def test_a_second_run_in_the_folder_leaves_the_first_alone(
    engine: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out, refused = tmp_path / "out", []

    def meanwhile(done: int, count: int) -> None:
        with pytest.raises(InputError, match="another run is writing to"):
            run(engine, out)
        refused.append(done)

    run(engine, out, progress=meanwhile)
    assert len(refused) == 1 + len(NAMES)
    assert tree(out) == whole


@pytest.mark.parametrize(("damage", "said"), [(b"other", "has SHA-256"), (None, "is missing")])
def test_a_damaged_shard_is_announced_and_made_again(
    engine: Path, whole: dict[str, bytes], tmp_path: Path, damage: bytes | None, said: str
) -> None:
    out = tmp_path / "out"
    run(engine, out)
    (out / NAMES[1]).unlink() if damage is None else (out / NAMES[1]).write_bytes(damage)
    with pytest.warns(UserWarning, match=f"{NAMES[1]}' {said}.*made again"):
        assert run(engine, out).made == 1
    assert tree(out) == whole


def test_a_full_disk_keeps_what_is_finished(
    engine: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "out", shards.write_shard

    def full(part: Path, shard: shards.Shard, format: str) -> tuple[str, int]:
        if shard.seeds[0] == 2 * SIZE:
            part.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))
        return write(part, shard, format)

    monkeypatch.setattr(work, "write_shard", full)
    with pytest.raises(pfdiff.InputError, match="No space left on device; finished shards are kept"):
        run(engine, out)
    assert sorted(tree(out)) == ["manifest.json", *NAMES[:2]]
    monkeypatch.undo()
    assert run(engine, out).made == 2
    assert tree(out) == whole


def test_another_run_in_the_same_folder_is_refused(engine: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(engine, out, progress=stop_after(1))
    before = tree(out)
    for name, changed in {
        "nfe": {"nfe": 6},
        "count": {"count": COUNT + 1},
        "first": {"first": 1},
        "shard": {"shard": 8},
        "format": {"format": "parquet"},
        "conditions": {"conditions": {"label": 2}},
    }.items():
        with pytest.raises(pfdiff.InputError, match=f"was begun with {name} .*, this run has .*another folder"):
            run(engine, out, **changed)
    assert tree(out) == before


def test_a_changed_engine_is_refused(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "one").path
    with pytest.raises(KeyboardInterrupt):
        run(engine, tmp_path / "out", progress=stop_after(1))
    before = tree(tmp_path / "out")
    recipe = make_recipe(read_artifact(engine), COUNT, 4, size=SIZE, format="npz")
    other = write_engine(tmp_path / "two", batch=(1, 4)).path
    with pytest.raises(pfdiff.InputError, match=r"was begun with engine [0-9a-f]{12}, this run has [0-9a-f]{12};"):
        run(other, tmp_path / "out")
    with pytest.raises(pfdiff.InputError, match="was changed during the run"):
        work.Worker(recipe, work.Workplace(other, tmp_path / "out"))
    assert tree(tmp_path / "out") == before

    # One more program changes no sample of this one.
    wider = write_engine(tmp_path / "three", nfe=(4, 5, 6)).path
    assert run(wider, tmp_path / "out").made == 3


def test_a_shard_that_kills_its_workers_ends_the_run(engine: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(engine, out, progress=stop_after(1))
    recipe = make_recipe(read_artifact(engine), COUNT, 4, size=SIZE, format="npz")
    for death in range(work.MOST_TRIES):
        (out / f".{NAMES[2]}-{death}.part").touch()
    with work.Worker(recipe, work.Workplace(engine, out)) as worker:
        worker.make(1)
        with pytest.raises(pfdiff.BackendError, match=f"{NAMES[2]}' has cost 5 workers"):
            worker.make(2)


# Places.
def test_a_folder_stays_until_another_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "shard-000000"
    pixels = np.zeros((2, 3, 5, 1), np.uint8)

    def place(value: int) -> None:
        with shards.placing(target) as part:
            shards.write_shard(part, shards.Shard(np.arange(2, dtype=np.uint64), {}, pixels + np.uint8(value)), "png")

    place(0)
    before = tree(tmp_path)
    rename = os.rename

    def refusing(source: Path, place: Path) -> None:
        if source.name.endswith(shards.PART):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, place)

    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "rename", refusing)
    with pytest.raises(OSError, match="Input/output error"):
        place(1)
    assert tree(tmp_path) == before
    monkeypatch.undo()
    place(2)
    assert tree(tmp_path).keys() == before.keys()  # nothing is left aside
    assert (np.asarray(Image.open(target / "000000.png")) == 2).all()


def test_places_that_do_not_fit(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    for name, said in {"no/out": "does not exist", "file": "is a file", "full": "holds files and no manifest"}.items():
        with pytest.raises(pfdiff.InputError, match=said):
            run(engine, tmp_path / name)
    (tmp_path / "full" / "manifest.json").write_text("{")
    with pytest.raises(pfdiff.InputError, match="is damaged"):
        run(engine, tmp_path / "full")


def test_what_cannot_be_swept_is_one_line(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(path: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    out = tmp_path / "out"
    out.mkdir()
    (out / f".{NAMES[0]}-0.part").touch()
    monkeypatch.setattr("pfdiff.engine.bulk.manifest.remove", refusing)
    with pytest.raises(pfdiff.InputError, match=r"cannot write '.*-0\.part': Operation not permitted; finished shards"):
        run(engine, out)


def test_a_folder_that_cannot_be_written(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, **_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(pfdiff.InputError, match=r"cannot write '.*out': Permission denied"):
        run(engine, tmp_path / "out")
