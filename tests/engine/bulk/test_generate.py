"""What a bulk run writes, against samples drawn one by one and against float64; its command; bad input."""

from __future__ import annotations

import io
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pfdiff
from pfdiff.cli import main
from pfdiff.cli.output.progress import rate_and_time_left
from pfdiff.engine.bulk import generate as bulk
from pfdiff.engine.bulk.shards import digest_of

from ...small.bulk import COUNT, NAMES, SIZE, image_engine, latent_engine, read_npz, run, tree
from ...small.engine import SHAPE, program, small


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
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"nfe": 9}, "this engine has 4, 6"),
        ({"nfe": None}, "nfe is missing and this engine has several; choose one of 4, 6"),
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
