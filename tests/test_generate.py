"""A bulk run against samples drawn one by one and against float64, and every way in which it can be cut short."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image

import pfdiff
from pfdiff.cli import main
from pfdiff.cli_generate import rate_and_time_left
from pfdiff.engine import generate as bulk
from pfdiff.engine import shards
from pfdiff.engine import worker as work
from pfdiff.engine.artifact import read_artifact, records_of, write_manifest
from pfdiff.engine.contract import DecoderContract
from pfdiff.engine.errors import InputError
from pfdiff.engine.recipe import make_recipe
from pfdiff.engine.shards import digest_of

from .small_engine import CONTRACT, SHAPE, program, small, write_engine

COUNT, SIZE = 25, 7  # the last shard has 4 samples
NAMES = [f"shard-{index:06d}.npz" for index in range(4)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_engine(tmp_path_factory.mktemp("engines") / "small.engine").path


@pytest.fixture(scope="module")
def whole(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run writes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run(engine, out)
    return tree(out)


def run(engine: Path, out: Path, count: int = COUNT, **changed: Any) -> bulk.Generated:
    return pfdiff.generate(engine, count, out, **{"nfe": 4, "format": "npz", "shard": SIZE, **changed})


def tree(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def read_npz(folder: Path) -> dict[str, np.ndarray]:
    """All shards as one."""
    parts = [dict(np.load(path)) for path in sorted(folder.glob("*.npz"))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# What is in the files.
def test_samples_are_those_of_their_seeds(engine: Path, tmp_path: Path) -> None:
    """Against the engine one seed at a time, and against float64; conditions are row seed mod m."""
    shift = np.linspace(-0.1, 0.1, 6, dtype=np.float32).reshape(2, 3, 1)
    done = run(engine, tmp_path / "out", first=100, conditions={"label": [4, 0, 9], "shift": shift})
    assert (done.shards, done.made, len(done.made_by)) == (4, 4, 1)
    got = read_npz(tmp_path / "out")
    seeds = np.arange(100, 100 + COUNT)
    label, each_shift = np.array([4, 0, 9])[seeds % 3], shift[seeds % 2]
    np.testing.assert_array_equal(got["seed"], seeds)
    np.testing.assert_array_equal(got["label"], label)
    np.testing.assert_array_equal(got["shift"], each_shift)
    with pfdiff.load(engine) as alone:
        one_by_one = [
            alone.sample(seeds=[int(seed)], nfe=4, label=int(label[i]), shift=each_shift[i]).numpy()
            for i, seed in enumerate(seeds)
        ]
    np.testing.assert_array_equal(got["sample"], np.concatenate(one_by_one))

    noise = pfdiff.noise(seeds, SHAPE).double()
    exact = program(4).evaluate(lambda x, t: small(x, t, label, np.float64(each_shift)), noise)
    np.testing.assert_allclose(got["sample"], exact, atol=1e-4)


def test_labels_with_names_are_taken_in_turn(engine: Path, tmp_path: Path) -> None:
    run(engine, tmp_path / "out", first=4)
    got = read_npz(tmp_path / "out")
    np.testing.assert_array_equal(got["label"], np.arange(4, 4 + COUNT) % 3)
    assert not got["shift"].any()


@pytest.mark.parametrize("pixels", [False, True])
def test_parquet_holds_the_same_columns(engine: Path, tmp_path: Path, pixels: bool) -> None:
    engine = engine if not pixels else image_engine(tmp_path)
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    run(engine, tmp_path / "npz", pixels=pixels)
    run(engine, tmp_path / "parquet", format="parquet", pixels=pixels)
    expected = read_npz(tmp_path / "npz")
    tables = [parquet.read_table(path) for path in sorted((tmp_path / "parquet").glob("*.parquet"))]
    for name, values in expected.items():
        columns = [table[name].combine_chunks() for table in tables]
        arrays = [one.to_numpy_ndarray() if values.ndim > 1 else one.to_numpy() for one in columns]
        assert arrays[0].dtype == values.dtype
        np.testing.assert_array_equal(np.concatenate(arrays), values)


@pytest.mark.parametrize("latent", [False, True])
def test_a_folder_of_pngs(tmp_path: Path, latent: bool) -> None:
    engine = latent_engine(tmp_path) if latent else image_engine(tmp_path)
    run(engine, tmp_path / "out", format="png")
    with pfdiff.load(engine) as alone:
        images = alone.images(seeds=range(COUNT), nfe=4, label=np.arange(COUNT) % 3).numpy()
    for seed in range(COUNT):
        path = tmp_path / "out" / f"shard-{seed // SIZE:06d}" / f"{seed:06d}.png"
        np.testing.assert_array_equal(np.asarray(Image.open(path)), images[seed])


def test_a_folder_stays_until_another_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "shard-000000"
    pixels = np.zeros((2, 3, 5, 1), np.uint8)

    def place(value: int) -> None:
        with shards.placing(target) as part:
            shards.write_shard(part, shards.Shard(np.arange(2, dtype=np.uint64), {}, pixels + np.uint8(value)), "png")

    place(0)
    before = tree(tmp_path)
    replace_file = os.replace

    def refusing(source: Path, place: Path) -> None:
        if place == target and not source.name.endswith(f".old{shards.PART}"):
            raise OSError(errno.EIO, "Input/output error")
        replace_file(source, place)

    monkeypatch.setattr(os, "replace", refusing)
    with pytest.raises(OSError, match="Input/output error"):
        place(1)
    assert tree(tmp_path) == before
    monkeypatch.undo()
    place(2)
    assert tree(tmp_path).keys() == before.keys()  # nothing is left aside
    assert (np.asarray(Image.open(target / "000000.png")) == 2).all()


def image_engine(folder: Path) -> Path:
    """An engine whose samples are pictures of three channels."""
    path = folder / "image.engine"
    artifact = write_engine(path)
    model = onnx.load(path / "network.onnx")
    weight = onnx.numpy_helper.from_array(np.full((3, 3, 5), 0.7, np.float32), "weight")
    model.graph.initializer[0].CopyFrom(weight)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[1].dim_value = 3
    onnx.save(model, path / "network.onnx")
    contract = pfdiff.Contract.from_dict({**CONTRACT.to_dict(), "shape": [3, 3, 5]})
    write_manifest(replace(artifact, contract=contract, files=records_of(path)))
    return path


def latent_engine(folder: Path) -> Path:
    """An engine of two channels whose decoder mixes them into three."""
    path = folder / "latent.engine"
    artifact = write_engine(path)
    weight = np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2, 1, 1)
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", channels, 3, 5])
        for name, channels in (("latents", 2), ("image", 3))
    ]
    nodes = [helper.make_node("Conv", ["latents", "weight"], ["image"])]
    graph = helper.make_graph(nodes, "mix", values[:1], values[1:], [onnx.numpy_helper.from_array(weight, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path / "decoder.onnx")
    decoder = DecoderContract("mix", SHAPE, (3, 3, 5))
    write_manifest(replace(artifact, files=records_of(path), decoder=decoder))
    return path


def test_batches_are_what_is_written(engine: Path, tmp_path: Path) -> None:
    run(engine, tmp_path / "out", first=3)
    expected = read_npz(tmp_path / "out")
    with pfdiff.load(engine) as loaded:
        got = list(bulk.batches(loaded, COUNT, 4, first=3, size=10))
    assert [len(one.seeds) for one in got] == [10, 10, 5]
    for name, values in expected.items():
        np.testing.assert_array_equal(np.concatenate([one.columns[name] for one in got]), values)


def test_files_do_not_depend_on_time_or_threads(
    engine: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 2e9)
    run(engine, tmp_path / "out", threads=2)
    assert tree(tmp_path / "out") == whole
    with zipfile.ZipFile(tmp_path / "out" / NAMES[0]) as file:
        assert {one.date_time[0] for one in file.infolist()} == {1980}


def test_the_manifest_describes_the_run(engine: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    manifest = json.loads(whole["manifest.json"])
    assert [one["name"] for one in manifest["shards"]] == NAMES
    assert [one["first"] for one in manifest["shards"]] == [0, 7, 14, 21]
    assert manifest["complete"]
    assert manifest["finished"] == COUNT
    assert manifest["recipe"]["conditions"]["label"] == {
        "row": "seed mod 3",
        "dtype": "int64",
        "shape": [3],
        "values": [0, 1, 2],
    }
    for one in manifest["shards"]:
        (tmp_path / one["name"]).write_bytes(whole[one["name"]])
        assert (one["sha256"], one["bytes"]) == digest_of(tmp_path / one["name"])
        assert "onnxruntime" in one["made_by"]


# Cut short and repeated.
def stop_after(shards: int) -> Any:
    def progress(done: int, total: int) -> None:
        if done >= shards * SIZE:
            raise KeyboardInterrupt

    return progress


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


# The command.
@pytest.mark.filterwarnings("default")  # the command prints them
def test_the_command(engine: Path, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["generate", str(engine), "--count", str(COUNT), "--nfe", "4", "--format", "npz", "--shard", str(SIZE)]
    words += ["--out", str(out)]
    assert main(words) == 0
    assert re.fullmatch(f"{out}: 25 samples of 4 evaluations in 4 shards, .* s\n", capsys.readouterr().out)
    assert tree(out) == whole
    (out / NAMES[3]).unlink()
    assert main(words) == 0
    said = capsys.readouterr()
    assert "in 4 shards, 3 of them from before, " in said.out
    assert re.fullmatch(f"pfdiff: '.*{NAMES[3]}' is missing: it is made again\n", said.err)
    assert main([*words, "--label", "two"]) == 2
    assert "was begun with conditions" in capsys.readouterr().err


def test_the_command_takes_values_by_seed(engine: Path, tmp_path: Path) -> None:
    words = ["generate", str(engine), "--count", "5", "--nfe", "4", "--format", "npz", "--first", "2"]
    assert main([*words, "--label", "two,7,0", "--out", str(tmp_path / "out")]) == 0
    assert read_npz(tmp_path / "out")["label"].tolist() == [0, 2, 7, 0, 2]


def test_progress_has_count_and_rate(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", Terminal())
    words = ["generate", str(engine), "--count", "25", "--nfe", "4", "--format", "npz", "--shard", "1"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sys.stderr.getvalue())  # type: ignore[attr-defined]
    assert re.search(r"25/25 [\d.]+ samples/s 0:00:00", shown)


def test_the_rate_is_that_of_the_whole_run() -> None:
    """Shards an hour apart too, from the first one on."""
    assert rate_and_time_left(0, 10_000, 900) == ""
    assert rate_and_time_left(256, 256 * 3, 3600) == "0.07 samples/s 3:00:00"
    assert rate_and_time_left(30_000, 15_000, 60) == "500 samples/s 0:00:30"


# Bad input.
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
    monkeypatch.setattr("pfdiff.engine.ledger.remove", refusing)
    with pytest.raises(pfdiff.InputError, match=r"cannot write '.*-0\.part': Operation not permitted; finished shards"):
        run(engine, out)


def test_a_folder_that_cannot_be_written(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, **_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(pfdiff.InputError, match=r"cannot write '.*out': Permission denied"):
        run(engine, tmp_path / "out")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"nfe": 9}, "this engine has 4, 6"),
        ({"nfe": None}, "this engine has 4, 6"),
        ({"count": 0}, "count=0"),
        ({"first": -1}, "first=-1"),
        ({"first": 2**64 - 3}, "the largest is 18446744073709551615"),
        ({"shard": 0}, "shard=0"),
        ({"format": "tfrecord"}, "expected one of parquet, npz, png"),
        ({"format": "png"}, "are no images"),
        ({"conditions": {"lable": 3}}, "unknown condition 'lable'; this network takes label, shift"),
        ({"conditions": {"label": []}}, "got no values"),
        ({"conditions": {"label": [1, 11]}}, "got 1..11, expected values in 0..9"),
        ({"workers": 2}, "are for Ray"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    engine: Path, tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(pfdiff.InputError, match=said) as caught:
        run(engine, tmp_path / "out", **changed)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_library_is_named(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(pfdiff.InputError, match=r"pip install 'pfdiff\[parquet\]', or choose format npz"):
        run(engine, tmp_path / "out", format="parquet")
    with pytest.raises(pfdiff.InputError, match=r"pip install 'pfdiff\[ray\]'"):
        run(engine, tmp_path / "out", ray="local")
