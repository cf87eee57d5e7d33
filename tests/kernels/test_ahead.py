"""kernels/ahead.py: what compiled kernels promise, proved without a GPU from their PTX and cubins."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

import pfdiff
from pfdiff.kernels import ahead, assembly
from pfdiff.kernels.step import MANY, MAX_BUFFERS
from pfdiff.kernels.table import Update, updates
from pfdiff.kernels.variants import Variant, images_variant, noise_variant, program_variants, standard, step_variant

pytest.importorskip("triton", reason="the kernels need Triton")

CAPABILITIES = [75, 90, 120]
PFDIFF = Update(0b10, 0b11)
PFDIFF_HALF = Update(0b10, 0b10, separate=True)
EVERYTHING = Update(0b11111, 0b11111, clip=True, separate=True)
VARIANTS = [
    step_variant(1, Update(1, 1)),
    step_variant(2, PFDIFF),
    step_variant(2, PFDIFF_HALF, "fp16", "fp16"),
    step_variant(2, PFDIFF_HALF, "bf16", "bf16"),
    step_variant(2, Update(0b11, 0b11, clip=True)),
    step_variant(2, Update(0b11, 0b11, clip=True, separate=True), "fp16", "fp16"),
    step_variant(2, Update(0, 0b10, separate=True), "fp32", "fp16"),
    step_variant(5, EVERYTHING, "fp32", "fp32"),
    step_variant(5, EVERYTHING, "fp16", "fp16"),
    step_variant(5, EVERYTHING, "bf16", "bf16"),
    step_variant(5, EVERYTHING, "bf16", "bf16", aligned=False),
    step_variant(8, Update(255, 255, clip=True, separate=True), "bf16", "bf16", aligned=False),
    noise_variant(),
    images_variant(1),
    images_variant(3),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ahead") / "kernels"


@pytest.fixture(scope="module")
def records(folder: Path) -> list[ahead.Record]:
    seen: list[tuple[int, int]] = []
    found = ahead.compile_ahead(
        CAPABILITIES, folder, lambda done, total, _: seen.append((done, total)), variants=VARIANTS
    )
    total = len(CAPABILITIES) * len(VARIANTS)
    assert seen == [(done, total) for done in range(1, total + 1)]
    return found


def test_every_kernel_is_there_for_every_capability(records: list[ahead.Record], folder: Path) -> None:
    assert [(r.capability, r.name) for r in records] == [(c, v.name) for c in CAPABILITIES for v in VARIANTS]
    for record in records:
        assert (folder / record.cubin).read_bytes()[:4] == b"\x7fELF"
        assert f".target sm_{record.capability}" in (folder / record.ptx).read_text()


def test_nothing_spills(records: list[ahead.Record]) -> None:
    assert {r.spill_bytes for r in records} == {0}
    few = [r for r in records if r.constants.get("BUFFERS", 0) < MANY]
    assert max(r.registers for r in few) <= 128  # four programs of 128 threads on an SM at the least
    assert all(r.registers > 0 for r in records)


def test_bytes_equal_the_floor(records: list[ahead.Record]) -> None:
    assert [r.name for r in records if not r.at_floor] == []


def test_pfdiff_reads_two_and_writes_two(records: list[ahead.Record]) -> None:
    single = [r for r in records if r.name == "step-b2-r10-w11-fp32"]
    half = [r for r in records if r.name == "step-b2-r10-w10-fp16-fp16"]
    assert [(r.read_bytes, r.write_bytes) for r in single] == [(8, 8)] * len(CAPABILITIES)
    assert [(r.read_bytes, r.write_bytes) for r in half] == [(6, 6)] * len(CAPABILITIES)


def test_aligned_accesses_are_sixteen_bytes(records: list[ahead.Record]) -> None:
    for record in records:
        if not record.promised:
            assert set(record.load_bits + record.store_bits) == {16, 32}
        else:
            assert record.store_bits == (128,), record.name
            expected = {"noise": (), "images-c3": (32,)}  # three planes meet in one pixel
            assert record.load_bits == expected.get(record.name, (128,)), record.name


def test_multiply_and_add_stay_apart(records: list[ahead.Record], folder: Path) -> None:
    assert [r.name for r in records if "fma" in (folder / r.ptx).read_text()] == []


def test_every_load_is_asked_for_before_the_first_is_used(records: list[ahead.Record], folder: Path) -> None:
    """What hides the memory's latency; ptxas left alone spreads the loads over the arithmetic to save registers."""
    from triton import knobs

    for record in records:
        if record.capability == 90 and record.name in {variant.name for variant in VARIANTS[1:4]}:  # PFDiff's update
            command = [knobs.nvidia.nvdisasm.path, "-c", str(folder / record.cubin)]
            listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found = re.findall(r"\b(LDG\.E\.128|LDG\.E\.64|FMUL|FADD)\b", listing)
            loads = record.read_bytes * record.block / record.threads / 16
            assert found[: int(loads)] == ["LDG.E.128"] * int(loads), record.name
            assert found.count("LDG.E.128") == loads


def test_the_summary_is_the_worst_of_each_group(records: list[ahead.Record], folder: Path) -> None:
    written = json.loads((folder / ahead.SUMMARY).read_text())
    assert written["rows"] == ahead.summary(records)
    assert written["run_on"] is None
    row = next(row for row in written["rows"] if (row["capability"], row["op"], row["states"]) == (90, "step", 5))
    group = [r for r in records if r.capability == 90 and r.name.startswith("step-b5")]
    assert row["kernels"] == len(group) == 4
    assert row["registers"] == max(r.registers for r in group)
    assert (row["spill_bytes"], row["above_floor"]) == (0, 0)
    assert (row["narrowest_load"], row["narrowest_store"]) == (128, 128)  # of those that are promised alignment
    assert row["bytes_per_element"] == row["floor"] == 48  # float32: five states and out, five states and y_in


def test_index_tells_a_loader_how_to_launch(records: list[ahead.Record], folder: Path) -> None:
    index = json.loads((folder / ahead.INDEX).read_text())
    assert index["format"] == ahead.FORMAT
    assert len(index["kernels"]) == len(records)
    entry = next(e for e in index["kernels"] if e["name"] == "step-b2-r10-w10-fp16-fp16")
    assert entry["constants"] == {"BUFFERS": 2, "READS": 2, "WRITES": 2, "CLIP": False, "SEPARATE": True, "BLOCK": 1024}
    arguments = entry["arguments"]
    names = ["states", "y_in", "out", "table", "row", "elements"]
    assert [a["name"] for a in arguments[:6]] == names
    assert [a["type"] for a in arguments[:6]] == ["*fp32", "*fp16", "*fp16", "*fp32", "i32", "i64"]
    assert [a["multiple_of"] for a in arguments[:6]] == [16, 16, 16, 1, 1, 16]
    assert {a["name"] for a in arguments[6:]} <= {"scratch"}
    assert (entry["symbol"], entry["threads"], entry["block"]) == ("step_kernel", 128, 1024)


def test_no_path_of_this_machine_is_written(records: list[ahead.Record], folder: Path) -> None:
    source = str(Path(ahead.__file__).parent).encode()
    for path in folder.rglob("*"):
        assert path.is_dir() or source not in path.read_bytes(), path.name


def test_compiling_again_gives_the_same_bytes(
    records: list[ahead.Record], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_ALWAYS_COMPILE", "1")
    (again,) = ahead.compile_ahead([90], tmp_path / "again", variants=[VARIANTS[2]])
    assert (tmp_path / "again" / again.cubin).read_bytes() == (folder / again.cubin).read_bytes()


def test_interpreting_in_the_same_process_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    (record,) = ahead.compile_ahead([86], tmp_path / "out", variants=[noise_variant()])
    assert record.at_floor


SOLVERS = ["ddim", "dpm-solver:order=2", "dpm++:2s", "dpm++:2m", "pfdiff:k=1,l=1", "pfdiff:k=3,l=2,base=dpm++2s"]


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_standard_set_holds_every_program_of_one_or_two_states(prediction: str) -> None:
    ready = set(standard())
    for solver in SOLVERS:
        for clip in (None, 1.0):
            program = pfdiff.compile(solver, "cosine:300", 8, prediction=prediction, clip=clip)
            assert program.buffers <= 2
            for network in ("fp32", "fp16", "bf16"):
                rows = updates(p=program.p, W=program.W, w=program.w, clip=clip is not None, separate=network != "fp32")
                assert set(program_variants(program.buffers, rows, network)) <= ready


def test_standard_set_has_a_kernel_for_everything_else() -> None:
    names = {variant.name for variant in standard()}
    assert len(names) == len(standard())
    for buffers in range(1, MAX_BUFFERS + 1):
        full = f"step-b{buffers}-r{'1' * buffers}-w{'1' * buffers}"
        for tail in ("fp32", "fp32-fp32", "fp16-fp16", "bf16-bf16"):
            for clip in ("", "clip-"):
                assert f"{full}-{clip}{tail}-any" in names
                assert (f"{full}-{clip}{tail}" in names) == (buffers < MANY)


# What runs where, from the tables of NVIDIA's programming guide, written out.
RUNS_ON = {
    75: [75],
    80: [80, 86, 89],
    86: [86, 89],
    89: [89],
    90: [90],
    100: [100],
    103: [103],
    120: [120],
    121: [121],
}


def test_cubins_serve_what_binary_compatibility_allows() -> None:
    assert tuple(RUNS_ON) == ahead.CAPABILITIES
    for device in range(60, 130):
        for compiled, devices in RUNS_ON.items():
            assert ahead.serving([compiled], device) == (compiled if device in devices else None), (compiled, device)
        expected = max((compiled for compiled, devices in RUNS_ON.items() if device in devices), default=None)
        assert ahead.serving(RUNS_ON, device) == expected
        assert ahead.serving(reversed(RUNS_ON), device) == expected
    assert ahead.serving([80, 86], 89) == 86
    assert ahead.serving([80, 89], 86) == 80
    assert ahead.serving([], 86) is None


def test_what_is_compiled_for_one_architecture_alone_serves_no_other(tmp_path: Path) -> None:
    """Triton's `sm_90a`: the suffix says that the cubin runs on 9.0 only, as `serving` holds."""
    for capability in ahead.CAPABILITIES:
        (tmp_path / f"sm{capability}").mkdir()
        record = ahead.compile_one(noise_variant(), capability, tmp_path)
        target = re.search(r"\.target (\S+)", (tmp_path / record.ptx).read_text())
        assert target is not None
        assert target[1] == f"sm_{capability}" + ("a" if capability >= 90 else "")
        assert record.spill_bytes == 0


def test_an_earlier_result_is_replaced_and_anything_else_is_kept(tmp_path: Path) -> None:
    chosen: list[Variant] = [noise_variant()]
    out = tmp_path / "kernels"
    ahead.compile_ahead([90], out, variants=chosen)
    ahead.compile_ahead([80], out, variants=chosen)
    assert sorted(path.name for path in out.iterdir()) == [ahead.INDEX, "sm80", ahead.SUMMARY]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ValueError, match="give a new or an empty folder"):
        ahead.compile_ahead([80], tmp_path / "mine", variants=chosen)
    with pytest.raises(ValueError, match="choose from 75, 80"):
        ahead.compile_ahead([52], tmp_path / "old", variants=chosen)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kernels", "mine"]


@pytest.mark.slow
def test_several_processes_write_the_same_bytes(
    records: list[ahead.Record], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "FEWEST_JOBS", 1)
    found = ahead.compile_ahead([90], tmp_path / "out", variants=VARIANTS[:4], workers=2)
    assert found == [r for r in records if r.capability == 90][:4]
    for record in found:
        assert (tmp_path / "out" / record.cubin).read_bytes() == (folder / record.cubin).read_bytes()


def test_without_triton(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ahead, "triton_available", lambda: False)
    with pytest.raises(
        RuntimeError, match=r"compiling kernels needs Triton, which is not installed; pip install triton$"
    ):
        ahead.compile_ahead([90], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_accesses_are_read_from_ptx() -> None:
    ptx = """
    @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
    ld.global.ca.b32 { %r26 }, [ %rd6 + 0 ];
    @%p1 ld.global.L1::evict_first.v2.b16 { %rs1, %rs2 }, [ %rd2 + 0 ];
    @%p1 st.global.b8 [ %rd5 + 0 ], { %rs3 };
    """
    assert assembly.accesses(ptx) == assembly.Accesses((128, 32), (8,))


def test_a_signature_that_does_not_fit_is_an_error() -> None:
    ptx = ".visible .entry f(\n.param .u64 .ptr .global .align 1 f_0,\n.param .u32 f_1,\n.param .u64 f_2\n)"
    assert assembly.parameters(ptx, (("x", "*fp32"), ("n", "i32")))[2:] == (("scratch", "*i8"),)
    with pytest.raises(RuntimeError, match="expected \\[64, 64\\]"):
        assembly.parameters(ptx, (("x", "*fp32"), ("n", "i64")))
