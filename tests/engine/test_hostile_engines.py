"""Engines that somebody made to do harm, or that are damaged in unusual ways: one line, at once, nothing outside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pfdiff.engine.api import MOST_RELOADS, Engine
from pfdiff.engine.artifact import check_in_place, read_artifact, records_of, write_manifest
from pfdiff.engine.atomic import replacing_folder
from pfdiff.engine.errors import EngineFileError, PfdiffError
from pfdiff.engine.runtime import opened as networks

from ..small.engine import write_engine, write_onnx
from .test_artifact import edit

HUGE = 10**400


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return write_engine(tmp_path / "small.engine").path


def refusal(engine: Path) -> str:
    """The one line of `read_artifact`, in less than five seconds."""
    before = time.monotonic()
    with pytest.raises(EngineFileError) as caught:
        read_artifact(engine)
    assert time.monotonic() - before < 5
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 300 + 2 * len(str(engine))
    return line


def in_contract(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["contract"].update(fields)


def in_program(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["programs"]["4"].update(fields)


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a time scale of 400 digits": (in_contract(time_scale=HUGE), "time_scale an integer of 1329 bits"),
    "a sample of 400 digits": (in_contract(shape=[HUGE]), "expected at most 8 sizes"),
    "a sample of 2^80 elements": (in_contract(shape=[1 << 40, 1 << 40]), "2^40 elements"),
    "a batch of 2^40": (lambda c: c.update(batch=[1 << 40]), "expected sizes in 1..1048576"),
    "a batch of true": (lambda c: c.update(batch=[True]), "batch [True]"),
    "a batch that is a text": (lambda c: c.update(batch="12"), "batch '12'"),
    "another batch than the network's": (
        lambda c: (c["contract"].update(fixed_batch=3), c.update(batch=[1, 2])),
        "of 3 only",
    ),
    "a fixed batch of 2^40": (in_contract(fixed_batch=1 << 40), "fixed_batch 1099511627776"),
    "evaluations of 400 digits": (in_program(nfe=HUGE), "nfe is an integer of 1329 bits"),
    "evaluations as a text": (in_program(nfe="4"), "nfe is '4'"),
    "a thousand buffers": (in_program(buffers=1000), "buffers is 1000, expected an integer in 1..8"),
    "a solver that is a number": (in_program(solver=3), "solver is 3"),
    "a basis that is a list": (in_program(basis=[]), "basis is []"),
    "a schedule of 5000 letters": (in_program(schedule="l" * 5000), "schedule is 'll"),
    "a clip that is a text": (in_program(clip="1"), "clip is '1'"),
    "a clip of zero": (in_program(clip=0), "clip is 0, expected a number above 0"),
    "a start that is a text": (in_program(t_start="999"), "t_start is '999'"),
    "an end that is a list": (in_program(end=[1]), "end is [1]"),
    "a grid of texts": (in_program(grid=["a"]), "grid is ['a']"),
    "a prediction that is a list": (in_program(prediction=[]), "prediction is []"),
    "a true coefficient": (in_program(c_in=[True, 1, 1, 1]), "c_in is [True"),
    "coefficients beyond float32": (in_program(c_in=[1e39, 1, 1, 1]), "beyond float32"),
    "a record without a hash": (lambda c: c["files"]["network.onnx"].update(sha256=None), "expected a SHA-256"),
    "a record of 2^70 bytes": (lambda c: c["files"]["network.onnx"].update(bytes=1 << 70), "expected a SHA-256"),
    "a record that is a list": (lambda c: c["files"].update({"network.onnx": []}), "got list"),
    "files that are a list": (lambda c: c.update(files=[]), "files []"),
    "a name of 256 letters": (
        lambda c: c["files"].update({"n" * 256: {"sha256": "0" * 64, "bytes": 1}}),
        "cannot be read: File name too long",
    ),
    "a name that is no Unicode": (
        lambda c: c["files"].update({"\ud800": {"sha256": "0" * 64, "bytes": 1}}),
        "cannot be",
    ),
    "a name that turns the line round": (
        lambda c: c["files"].update({"\u202egpj.\x1b[2J\n": {"sha256": "0" * 64, "bytes": 1}}),
        r"'\u202egpj.\x1b[2J\n' is missing",
    ),
    "a format that is true": (lambda c: c.update(format=True), "has format True"),
    "a format of 30 MB": (lambda c: c.update(format="x" * (30 << 20)), "more than 16 MiB"),
    "40 levels": (lambda c: c.update(more=deep(40)), "more than 32 levels"),
    "5000 fields": (lambda c: c.update(more={str(i): 0 for i in range(5000)}), "more than 4096 fields"),
    "millions of values": (lambda c: c.update(more=[0] * 2_200_000), "more than 2097152 values"),
    "searches that are a list": (lambda c: c["provenance"].update(search=[1]), "provenance: search [1]"),
    "a search that is a number": (lambda c: c["provenance"].update(search={"8": 1}), "expected a record by its NFE"),
    "programs that are a list": (lambda c: c.update(programs=[]), "programs []"),
    "a condition that is a number": (in_contract(conditions=[3]), "condition: got int"),
    "a default of 400 digits": (
        lambda c: c["contract"]["conditions"][0].update(default=HUGE),
        "default an integer of 1329 bits",
    ),
    "a bound beyond int64": (
        lambda c: c["contract"]["conditions"][0].update(high=HUGE),
        "high an integer of 1329 bits",
    ),
    "an alias that is a list": (lambda c: c["contract"]["conditions"][0].update(alias=[]), "alias: the name ()"),
}


@pytest.mark.parametrize("case", EDITS)
def test_a_manifest_is_refused_in_one_line(engine: Path, case: str) -> None:
    change, message = EDITS[case]
    edit(engine, change)
    assert message in refusal(engine)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 1, "format": 1}', "the name 'format' stands twice"),
        ('{"format": 1e999}', "'provenance' is missing"),
        ('{"format": NaN}', "the number NaN"),
        ('{"format": 1, "programs": {"4": {"nfe": Infinity}}}', "the number Infinity"),
        ('{"format": ' + "[" * 992 + "]" * 992 + "}", "more than 32 levels"),
        ('{"format": ' + "9" * 5000 + "}", "not JSON"),
        ("\ufeff{}", "not JSON"),
        ("[" * 1_000_000, "more than 32 levels"),
    ],
)
def test_texts_that_json_readers_differ_about(engine: Path, text: str, message: str) -> None:
    (engine / "engine.json").write_text(text)
    line = refusal(engine)
    assert message in line or "has format" in line


# What is opened.
@pytest.mark.parametrize("name", ["engine.json", "network.onnx"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link"])
def test_only_regular_files_are_opened(engine: Path, name: str, kind: str) -> None:
    path = engine / name
    path.rename(engine.parent / "elsewhere")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else engine.parent / "elsewhere")
    line = refusal(engine)
    assert ("symbolic link" if name == "network.onnx" and kind in ("device", "link") else "cannot be read") in line


def test_a_link_to_an_engine_is_an_engine(engine: Path) -> None:
    link = engine.with_name("link")
    link.symlink_to(engine)
    assert read_artifact(link).batch == (1, 8)


@pytest.mark.parametrize("inside", ["", "graph"])
def test_weights_that_the_manifest_does_not_list_are_refused(tmp_path: Path, inside: str) -> None:
    """They would be loaded unverified, and belong to no digest."""
    engine = write_engine(tmp_path / "e", external=True).path
    if inside:  # of a graph within the graph
        model = onnx.load(engine / "network.onnx", load_external_data=False)
        held = next(one for one in model.graph.initializer if one.external_data)
        body = onnx.helper.make_graph([], "body", [], [], [held])
        model.graph.node.append(onnx.helper.make_node("If", ["c"], ["o"], then_branch=body, else_branch=body))
        model.graph.initializer.remove(held)
        (engine / "network.onnx").write_bytes(model.SerializeToString())
    listed = {name: record for name, record in records_of(engine).items() if name == "network.onnx"}

    def unlist(content: dict[str, Any]) -> None:
        content["files"] = {name: {"sha256": one.sha256, "bytes": one.bytes} for name, one in listed.items()}

    edit(engine, unlist)
    assert "keeps weights in 'network.onnx.data', which is not among the files" in refusal(engine)


def test_a_network_that_only_seems_to_have_weights_elsewhere_is_read(engine: Path) -> None:
    model = onnx.load(engine / "network.onnx")
    model.doc_string = "location, location, location"
    onnx.save(model, engine / "network.onnx")
    artifact = read_artifact(write_engine(engine.parent / "other").path)
    files = records_of(engine)
    edit(
        engine,
        lambda c: c["files"]["network.onnx"].update(
            sha256=files["network.onnx"].sha256, bytes=files["network.onnx"].bytes
        ),
    )
    assert read_artifact(engine).contract == artifact.contract


# A directory that is replaced.
def test_a_reader_sees_the_former_engine_or_the_new_one(tmp_path: Path) -> None:
    engine = tmp_path / "e"
    kinds = [write_engine(tmp_path / name, nfe=nfe) for name, nfe in (("one", (4,)), ("two", (6,)))]
    write_onnx(kinds[1].path / "network.onnx", weight=0.3)
    write_manifest(replace(kinds[1], files=records_of(kinds[1].path)))
    shutil.copytree(kinds[0].path, engine)
    stop = threading.Event()

    def swap() -> None:
        count = 0
        while not stop.is_set():
            with replacing_folder(engine) as folder:
                shutil.copytree(kinds[(count := count + 1) % 2].path, folder, dirs_exist_ok=True)

    writer = threading.Thread(target=swap)
    writer.start()
    try:
        seen = [tuple(read_artifact(engine).programs) for _ in range(300)]
    finally:
        stop.set()
        writer.join()
    assert set(seen) == {(4,), (6,)}


def test_programs_never_run_on_the_weights_of_another_engine(engine: Path) -> None:
    artifact = read_artifact(engine)
    other = write_engine(engine.with_name("other"))
    write_onnx(other.path / "network.onnx", weight=0.3)
    write_manifest(replace(other, files=records_of(other.path)))
    check_in_place(artifact)
    with replacing_folder(engine) as folder:
        shutil.copytree(other.path, folder, dirs_exist_ok=True)
    with pytest.raises(EngineFileError, match="was replaced by another since it was read; load it again"):
        check_in_place(artifact)
    with pytest.raises(EngineFileError, match="was replaced by another since it was read"):
        Engine.open(artifact, backend="onnxruntime")


@pytest.mark.parametrize("swaps", [3, 1000])
def test_an_engine_that_is_replaced_while_it_is_loaded_is_loaded_again(
    swaps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process swaps two engines whenever the network's file is about to be opened."""
    kinds = [write_engine(tmp_path / name, nfe=(nfe,)) for name, nfe in (("one", 4), ("two", 6))]
    paths = [one.path for one in kinds]
    write_onnx(paths[1] / "network.onnx", weight=0.3)
    write_manifest(replace(kinds[1], files=records_of(paths[1])))
    swapper = subprocess.Popen(
        [sys.executable, "-c", SWAPPER, *map(str, paths)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert swapper.stdin
    assert swapper.stdout
    commands, replies = swapper.stdin, swapper.stdout
    opened, count = networks.open_best, 0

    def swapped(*given: Any) -> Any:
        nonlocal count
        count += 1
        if count <= swaps:
            print(file=commands, flush=True)
            assert replies.readline() == "swapped\n"
        return opened(*given)

    monkeypatch.setattr(networks, "open_best", swapped)
    try:
        if swaps > 3:
            with pytest.raises(EngineFileError, match="is replaced again and again; wait for the builds"):
                Engine.open(paths[0], backend="onnxruntime")
            assert count == MOST_RELOADS
            return
        with Engine.open(paths[0], backend="onnxruntime") as engine:
            assert count == swaps + 1
            assert tuple(engine.programs) == (6,)  # after an odd number of swaps
            found = engine.sample(seeds=range(2))
    finally:
        swapper.communicate()
    with Engine.open(paths[0], backend="onnxruntime") as engine:
        np.testing.assert_array_equal(found, engine.sample(seeds=range(2)))


SWAPPER = """
import os, sys
one, two = sys.argv[1:]
for line in sys.stdin:
    os.rename(one, one + ".away")
    os.rename(two, one)
    os.rename(one + ".away", two)
    print("swapped", flush=True)
"""


def test_more_programs_are_no_other_engine(engine: Path) -> None:
    artifact = read_artifact(engine)
    edit(engine, lambda content: content["programs"].pop("6"))
    check_in_place(artifact)


def test_messages_stay_short_and_printable() -> None:
    line = str(PfdiffError("a\nb\x1b[31m\u202e\udcff" + "x" * 5000 + "; remedy"))
    assert line.startswith(r"a\nb\x1b[31m\u202e\udcff")
    assert line.endswith("; remedy")
    assert len(line) <= 1000
    assert line.isprintable()
    assert json.dumps(line)
