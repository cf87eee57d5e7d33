"""`build`: exports once, adds programs without exporting, checks first, leaves the former engine on failure."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from pfdiff.engine import artifact
from pfdiff.engine.artifact import FileRecord, read_artifact
from pfdiff.engine.errors import BackendError, EngineFileError, InputError, PfdiffError
from pfdiff.export import engine_directory
from pfdiff.export.build import build, check_place
from pfdiff.export.network import Network

from ..small.engine import CONDITIONS, SHAPE, Small, write_onnx

GIVEN: dict[str, Any] = {
    "shape": SHAPE,
    "schedule": "linear:1000",
    "prediction": "eps",
    "conditions": {one.name: one for one in CONDITIONS},
}


def onnx_network(tmp_path: Path, *, weight: float = 0.7, **onnx: Any) -> Network:
    write_onnx(tmp_path / "small.onnx", weight=weight, **onnx)
    return Network(tmp_path / "small.onnx", **GIVEN)


def no_export(monkeypatch: pytest.MonkeyPatch, cause: BaseException | None = None) -> None:
    def write(self: Network, folder: Path, *rest: Any, **options: Any) -> Any:
        (folder / "network.onnx").write_bytes(b"half")
        raise cause or AssertionError("exported")

    monkeypatch.setattr(Network, "written", write)


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and inode of every file."""
    return {path.name: (path.read_bytes(), path.stat().st_ino) for path in sorted(folder.iterdir())}


# What is exported, and what is not.
def test_a_module_is_built_and_its_engine_samples_like_it(tmp_path: Path) -> None:
    module = Small()
    network = Network(module, **GIVEN)
    stages: list[str] = []
    with build(network, [4, 6], batch=[8, 1], out=tmp_path / "e", threads=1, progress=stages.append) as engine:
        assert (engine.batch, sorted(engine.programs)) == ((1, 8), [4, 6])
        x = engine.sample(seeds=range(3), nfe=4, label=2)
    with build(network, [4, 6], batch=[8, 1], out=tmp_path / "e", backend="torch") as engine:
        assert (engine.sample(seeds=range(3), nfe=4, label=2) - x).abs().max() <= 1e-5 * x.abs().max()
    assert stages[-1] == f"{tmp_path / 'e'} is written: NFE 4, 6"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e"]


def test_what_is_up_to_date_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, out = onnx_network(tmp_path), tmp_path / "e"
    build(network, [4, 6], batch=[1, 8], out=out).close()
    before = state(out)
    no_export(monkeypatch)
    stages: list[str] = []
    start = time.perf_counter()
    build(network, 6, out=out, progress=stages.append).close()
    assert time.perf_counter() - start < 3
    assert stages[-1] == f"{out} is up to date: nothing to do"
    assert state(out) == before


def test_a_further_nfe_is_added_without_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, out = onnx_network(tmp_path), tmp_path / "e"
    with build(network, [4, 6], batch=[1, 8], out=out) as engine:
        solvers = {nfe: one.solver for nfe, one in engine.programs.items()}
    (out / "plans").mkdir()
    before = state_of_network = (out / "network.onnx").stat().st_ino
    no_export(monkeypatch)
    stages: list[str] = []
    with build(network, 5, "ddim", grid="uniform", out=out, progress=stages.append) as engine:
        assert {nfe: one.solver for nfe, one in engine.programs.items()} == {**solvers, 5: "ddim"}
        assert engine.batch == (1, 8)
        assert engine.sample(seeds=[1], nfe=5).shape == (1, *SHAPE)
    assert stages[-1] == f"{out}: the network is unchanged and not exported again; written: NFE 5"
    with build(network, 5, "ddim", grid="uniform", batch=2, out=out) as engine:
        assert engine.batch == read_artifact(out).batch == (2,)
    with build(network, 5, "ddim", grid="quadratic", out=out) as engine:
        assert engine.programs[5].grid == "quadratic"
    assert before == state_of_network == (out / "network.onnx").stat().st_ino
    assert (out / "plans").is_dir()


def test_a_manifest_that_nobody_would_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """990 evaluations make an engine.json of 18 MiB; here 40 are too many."""
    network, out = onnx_network(tmp_path), tmp_path / "e"
    build(network, 20, "ddim", out=out).close()
    before = state(out)
    monkeypatch.setattr(artifact, "LARGEST_MANIFEST_BYTES", len(before["engine.json"][0]) + 8_000)
    no_export(monkeypatch)
    for nfe, place, counts in ((40, out, "40"), (40, tmp_path / "new", "40"), (19, out, "19, 20")):
        with pytest.raises(InputError, match=f"NFE {counts}: engine.json would be .* MiB, expected at most"):
            build(network, nfe, "ddim", out=place)
    assert state(out) == before
    assert not (tmp_path / "new").exists()


def test_another_network_replaces_the_engine(tmp_path: Path) -> None:
    out = tmp_path / "e"
    build(onnx_network(tmp_path), [4, 6], out=out).close()
    former = read_artifact(out)
    with build(onnx_network(tmp_path, weight=0.8), 5, out=out) as engine:
        assert list(engine.programs) == [5]
    assert read_artifact(out).files != former.files
    assert read_artifact(out).provenance["network_digest"] != former.provenance["network_digest"]


def test_at_the_default_place_another_engine_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network = onnx_network(tmp_path)
    build(network, 4).close()
    build(network, 5).close()
    out = tmp_path / "small.engine"
    assert sorted(read_artifact(out).programs) == [4, 5]
    before = state(out)
    no_export(monkeypatch)
    monkeypatch.setattr("pfdiff.engine.backends.openvino_cpu.cpu_precisions", lambda: ("fp32", "bf16"))  # as on some
    with pytest.raises(InputError, match=r"small\.engine' holds precision fp32; give the engine another name"):
        build(network, 4, precision="bf16")
    with pytest.raises(InputError, match=r"small\.engine' holds another network; give the engine another name"):
        build(onnx_network(tmp_path, weight=0.8), 4)
    assert state(out) == before


def test_an_own_schedule_counts_by_its_numbers_and_lies_in_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_onnx(tmp_path / "small.onnx")
    products, moved, out = tmp_path / "products.npy", tmp_path / "moved.txt", tmp_path / "e"

    def network(file: Path, last: float) -> Network:
        values = np.linspace(0.99, last, 60)
        np.save(file, values) if file.suffix == ".npy" else np.savetxt(file, values, fmt="%.17g")
        monkeypatch.chdir(file.parent)
        return Network(tmp_path / "small.onnx", **{**GIVEN, "schedule": f"alphas:{file.name}"})

    first, same, other = network(products, 0.01), network(moved, 0.01), network(products, 0.5)
    assert first.digest == same.digest != other.digest
    for one, held in ((first, [4]), (same, [4, 5]), (other, [6])):  # the edited schedule is another network's
        with build(one, held[-1], out=out) as engine:
            assert list(engine.programs) == held
    build(first, 4, out=out).close()
    for file in (products, moved):
        file.unlink()
    program = "from pfdiff.engine.artifact import *; from pfdiff.engine.compiler.schedule import *; import sys\n"
    program += "print(parse_schedule(read_artifact(sys.argv[1]).contract.schedule).alpha(59) ** 2)"
    done = subprocess.run([sys.executable, "-c", program, out], cwd="/", capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(0.01, rel=1e-12)


def test_a_damaged_engine_is_built_anew(tmp_path: Path) -> None:
    network, out, stages = onnx_network(tmp_path), tmp_path / "e", []
    build(network, 4, out=out).close()
    os.truncate(out / "network.onnx", 5)
    build(network, 4, out=out, progress=stages.append).close()
    assert any(stage.startswith("building anew: engine ") and "'network.onnx' has 5 bytes" in stage for stage in stages)
    read_artifact(out)


def test_what_network_takes_build_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with build(onnx_network(tmp_path), 4) as engine:
        assert engine.path == tmp_path / f"{engine.contract.name}.engine"
    with pytest.raises(InputError, match="the schedule, what it predicts and the sample's shape are missing"):
        build(Small(), 4)


def test_a_fixed_batch_is_the_only_bucket(tmp_path: Path) -> None:
    network = onnx_network(tmp_path, batch=4)
    with build(network, 4, out=tmp_path / "e") as engine:
        assert engine.batch == (4,)
        assert engine.sample(seeds=range(6)).shape == (6, *SHAPE)
    with pytest.raises(InputError, match="takes batches of 4 only; give batch=4"):
        build(network, 4, batch=[1, 4], out=tmp_path / "e")


# Bad input, before anything is exported.
BAD: dict[str, tuple[dict[str, Any], type[PfdiffError], str]] = {
    "NFE 0": ({"nfe": 0}, InputError, "nfe 0, expected"),
    "NFE negative": ({"nfe": [4, -1]}, InputError, "nfe"),
    "NFE text": ({"nfe": "8"}, InputError, "nfe '8'"),
    "NFE a fraction": ({"nfe": 4.5}, InputError, "nfe 4.5"),
    "NFE true": ({"nfe": True}, InputError, "nfe True"),
    "no NFE": ({"nfe": []}, InputError, "nfe"),
    "NFE not a multiple of the order": ({"nfe": 5, "solver": "pfdiff:k=1,l=1,base=dpm-solver-2"}, InputError, "5"),
    "an unknown solver": ({"solver": "magic"}, InputError, "magic"),
    "l above k": ({"solver": "pfdiff:k=1,l=2"}, InputError, "l"),
    "an unknown grid": ({"grid": "cubic"}, InputError, "cubic"),
    "a grid with too few points": ({"grid": [999.0, 0.0, -1.0]}, InputError, "3"),
    "an unknown basis": ({"basis": "y"}, InputError, "basis"),
    "a clip of zero": ({"clip": 0.0}, InputError, "clip"),
    "an unknown end": ({"end": "never"}, InputError, "never"),
    "a start outside the schedule": ({"t_start": 5000}, InputError, "5000"),
    "batch 0": ({"batch": [0]}, InputError, "batch"),
    "batch text": ({"batch": "1,8"}, InputError, "batch"),
    "a batch too large": ({"batch": 10**6}, InputError, "expected at most"),
    "an unknown precision": (
        {"precision": "fp4"},
        InputError,
        "precision 'fp4', expected one of fp32, fp16, bf16, int8",
    ),
    "an unknown backend": ({"backend": "onnx"}, InputError, "backend 'onnx'"),
    "torch with an ONNX file": ({"backend": "torch"}, BackendError, "this network is an ONNX file"),
    "a folder that does not exist": ({"out": "no/where/e"}, InputError, "does not exist; create it first"),
    "a file in the place": ({"out": "small.onnx"}, InputError, "is a file"),
    "a folder of other things": ({"out": "."}, InputError, "holds 'small.onnx', which is no part of an engine"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    options, kind, message = BAD[case]
    network = onnx_network(tmp_path)
    monkeypatch.chdir(tmp_path)
    no_export(monkeypatch)
    with pytest.raises(kind, match=message) as caught:
        build(network, **{"nfe": 4, "out": "e", **options})
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]


def test_an_engine_holds_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "engine.json").touch()
    no_export(monkeypatch)
    with pytest.raises(InputError, match=r"is inside the engine .*; give a folder beside it"):
        build(onnx_network(tmp_path), 4, out=tmp_path / "e" / "inner")


# Failures on the way.
@pytest.mark.parametrize(
    ("cause", "kind", "message"),
    [
        (KeyboardInterrupt("by hand"), KeyboardInterrupt, "by hand"),
        (InputError("the graph differs"), InputError, "the graph differs"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            EngineFileError,
            "No space left on device; nothing was changed",
        ),
    ],
    ids=["interrupted", "refused", "disk full"],
)
@pytest.mark.parametrize("existing", [True, False])
def test_the_former_engine_survives(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cause: BaseException,
    kind: type[BaseException],
    message: str,
    existing: bool,
) -> None:
    out, before = tmp_path / "e", {}
    if existing:
        build(onnx_network(tmp_path), 4, out=out).close()
        before = state(out)
    network = onnx_network(tmp_path, weight=0.8)
    no_export(monkeypatch, cause)
    with pytest.raises(kind, match=message):
        build(network, 4, out=out)
    assert sorted(path.name for path in tmp_path.iterdir()) == (["e", "small.onnx"] if existing else ["small.onnx"])
    if existing:
        assert state(out) == before


@pytest.mark.parametrize("existing", [True, False])
def test_of_two_builds_one_waits_and_both_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    out, waiting = tmp_path / "e", Event()
    if existing:
        build(onnx_network(tmp_path), 6, out=out).close()
    export, write = Network.written, engine_directory.write_manifest

    def slow(self: Network, *rest: Any, **options: Any) -> Any:
        assert waiting.wait(10)
        return export(self, *rest, **options)

    def slow_write(*rest: Any) -> None:
        assert waiting.wait(10)
        write(*rest)

    def tell(line: str) -> None:
        if line == "waiting for another build of e":
            waiting.set()

    monkeypatch.setattr(Network, "written", slow)
    monkeypatch.setattr(engine_directory, "write_manifest", slow_write)
    networks = [onnx_network(tmp_path) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        running = [
            pool.submit(build, one, nfe, out=out, progress=tell) for one, nfe in zip(networks, (4, 5), strict=True)
        ]
        for one in running:
            one.result().close()
    assert sorted(read_artifact(out).programs) == ([4, 5, 6] if existing else [4, 5])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "small.onnx"]


def test_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    build(onnx_network(tmp_path), 4, out=tmp_path / "e").close()
    held = read_artifact(tmp_path / "e")
    data = (tmp_path / "e" / "network.onnx").read_bytes()
    assert held.files["network.onnx"] == FileRecord(hashlib.sha256(data).hexdigest(), len(data))


@pytest.mark.parametrize("name", [".engine", ".png", ".ONNX"])
def test_an_ending_is_no_name_of_an_engine(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is an ending without a name"):
        check_place(tmp_path / name)
    assert check_place(tmp_path / f"unet{name}").name == f"unet{name}"
