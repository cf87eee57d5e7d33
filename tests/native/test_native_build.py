"""The native runtime in every way of building it: sanitizers, clean clone, CUDA for all architectures, TensorRT."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .tree import MARKS, NATIVE, ROOT, cmake, run, write_engine

CAPABILITIES = (75, 80, 86, 89, 90, 100, 120)

pytestmark = MARKS


def test_sanitizers_find_nothing_in_12000_damaged_engines(tmp_path: Path):
    options = ["-DPFDIFF_TESTS=ON", "-DPFDIFF_SANITIZE=ON"]
    options += ["-DPFDIFF_CUDA=OFF", "-DPFDIFF_ONNXRUNTIME=OFF", "-DPFDIFF_TENSORRT=OFF"]
    # -O1: half the build time of -O2, and the sanitizers report more where less is optimised away.
    folder = cmake(
        tmp_path / "build", *options, "-DPFDIFF_WERROR=ON", "-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1"
    )
    assert "100% tests passed" in run(
        "ctest", "--test-dir", folder, "--output-on-failure", "-E", "fuzz", env={"TMPDIR": str(tmp_path)}
    )
    output = run(folder / "tests/native/pfdiff_fuzz", 12000, 7, env={"TMPDIR": str(tmp_path)})
    opened = int(re.search(r"12000 mutations, (\d+) opened", output).group(1))  # pyright: ignore[reportOptionalMemberAccess]
    assert 20 <= opened <= 3000  # most are refused, and some reach the very end
    assert not list(tmp_path.glob("pfdiff-fuzz*"))


# What is configured and built when nothing is asked for.
def configure(folder: Path, *options: str, status: int = 0) -> str:
    """What CMake says in one line, its breaks undone. Every part that a machine may lack is off."""
    off = [f"-DPFDIFF_{part}=OFF" for part in ("CUDA", "ONNXRUNTIME", "TENSORRT")]
    return " ".join(run("cmake", "-S", ROOT, "-B", folder, *off, *options, status=status).split())


def test_tests_are_built_on_request_alone(tmp_path: Path):
    for options, expected in (((), False), (("-DPFDIFF_TESTS=ON",), True)):
        configure(tmp_path, *options)
        targets = run("cmake", "--build", tmp_path, "--target", "help")
        assert "pfdiff-run" in targets
        assert ("pfdiff_fuzz" in targets) == ("pfdiff_test_parts" in targets) == expected
        listed = run("ctest", "--test-dir", tmp_path, "-N")
        assert ("Total Tests: 0" in listed) != expected


WITHOUT_JSON = "-DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON"


def test_without_nlohmann_json_its_release_is_downloaded_and_compared(tmp_path: Path):
    """From a file here in the place of the network: what is compiled with is the header that has the hash."""
    header = tmp_path / "json.hpp"
    header.write_text("#error the downloaded header\n")
    digest = hashlib.sha256(header.read_bytes()).hexdigest()
    source = [WITHOUT_JSON, f"-DPFDIFF_JSON_URL={header.as_uri()}", f"-DPFDIFF_JSON_SHA256={digest}"]
    configure(tmp_path / "build", *source)
    said = run("cmake", "--build", tmp_path / "build", "--target", "pfdiff", status=None)
    assert "#error the downloaded header" in said
    header.unlink()
    configure(tmp_path / "build", *source)  # it was kept
    (tmp_path / "build/nlohmann-json/nlohmann/json.hpp").write_text("changed")
    said = configure(tmp_path / "build", *source, status=1)  # and is looked at again
    assert "install nlohmann-json3-dev (Debian, Ubuntu)" in said


def test_a_download_that_fails_says_in_one_line_what_to_install(tmp_path: Path):
    missing = (tmp_path / "none.hpp").as_uri()
    said = configure(tmp_path / "missing", WITHOUT_JSON, f"-DPFDIFF_JSON_URL={missing}", status=1)
    assert f"nlohmann-json was not found and {missing} cannot be used: " in said
    assert "install nlohmann-json3-dev (Debian, Ubuntu) or nlohmann-json (conda, vcpkg, Homebrew), or put " in said
    other = tmp_path / "other.hpp"
    other.write_text("// not the release\n")
    said = configure(tmp_path / "other", WITHOUT_JSON, f"-DPFDIFF_JSON_URL={other.as_uri()}", status=1)
    assert f"its SHA-256 is {hashlib.sha256(other.read_bytes()).hexdigest()}, expected aaf127c0" in said
    assert not list((tmp_path / "other").rglob("json.hpp*"))


def test_headers_older_than_the_adapter_needs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "onnxruntime_c_api.h").write_text("#define ORT_API_VERSION 12\n")
    monkeypatch.setenv("ONNXRUNTIME_ROOT", str(tmp_path))
    words = f"ONNX Runtime's headers in {tmp_path} are of version 1.12, expected 1.18 or newer; they are not used"
    said = configure(tmp_path / "auto", "-DPFDIFF_ONNXRUNTIME=AUTO")
    assert words in said
    assert "ONNX Runtime: FALSE" in said
    said = configure(tmp_path / "on", "-DPFDIFF_ONNXRUNTIME=ON", status=1)
    assert words in said
    assert "OnnxRuntime was asked for but not found; set -DONNXRUNTIME_ROOT to an unpacked ONNX Runtime 1.18" in said


@pytest.mark.parametrize(("part", "package"), [("ONNXRUNTIME", "OnnxRuntime"), ("TENSORRT", "TensorRT")])
def test_a_folder_that_is_named_and_holds_no_toolkit_is_refused(tmp_path: Path, part: str, package: str):
    said = configure(tmp_path / "build", f"-DPFDIFF_{part}=AUTO", f"-D{part}_ROOT={tmp_path}", status=1)
    assert f"{package} was not found in {part}_ROOT={tmp_path}; set -D{part}_ROOT to an unpacked " in said


def test_the_walk_through_onnx_files_misses_no_tensor():
    """Each field that leads to a TensorProto, by the onnx package's descriptors, stands in external_weights.cpp."""
    onnx = pytest.importorskip("onnx")
    model = onnx.ModelProto.DESCRIPTOR
    below = {model.full_name: model}
    while True:
        more = [field.message_type for one in below.values() for field in one.fields if field.message_type is not None]
        new = {one.full_name: one for one in more if one.full_name not in below}
        if not new:
            break
        below |= new
    tensors = {onnx.TensorProto.DESCRIPTOR.full_name}
    while True:
        more = {name for name, one in below.items() if any(_below(field) in tensors for field in one.fields)} - tensors
        if not more:
            break
        tensors |= more
    expected = {
        (_snake(one.name), field.number, _snake(field.message_type.name))
        for one in below.values()
        for field in one.fields
        if one.full_name in tensors and _below(field) in tensors
    } | {("tensor", 13, "entry")}
    source = (ROOT / "engine/native/external_weights.cpp").read_text()
    found = re.findall(r"\{Message::(\w+), (\d+), Message::(\w+)\}", source)
    assert {(outer, int(number), inner) for outer, number, inner in found} == expected
    assert onnx.TensorProto.DESCRIPTOR.fields_by_name["external_data"].number == 13
    assert [(f.name, f.number) for f in onnx.StringStringEntryProto.DESCRIPTOR.fields] == [("key", 1), ("value", 2)]


def _below(field: Any) -> str | None:
    return field.message_type.full_name if field.message_type is not None else None


def _snake(name: str) -> str:
    """SparseTensorProto -> sparse_tensor, as the C++ names messages."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.removesuffix("Proto").removesuffix("Info")).lower()


# The plain way of a clean clone: static, CUDA when nvcc is there, no GPU.
def nvcc() -> str | None:
    return os.environ.get("CUDACXX") or shutil.which("nvcc")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A static build with nvcc where that is, and what it said."""
    folder = tmp_path_factory.mktemp("plain")
    options = ["-DPFDIFF_TESTS=ON", "-DPFDIFF_WERROR=ON", "-DPFDIFF_ONNXRUNTIME=OFF", "-DPFDIFF_TENSORRT=OFF"]
    options.append(f"-DPFDIFF_CUDA={'OFF' if nvcc() is None else 'ON'}")
    run("cmake", "-S", ROOT, "-B", folder, *options)
    targets = ["pfdiff-run"] if nvcc() is None else ["pfdiff-run", "pfdiff_test_cuda"]
    return folder, run("cmake", "--build", folder, "-j2", "--target", *targets)


def test_the_static_build_opens_engines(plain: tuple[Path, str], tmp_path: Path):
    engine = write_engine(tmp_path / "some.engine", "ddim", "linear:1000")
    run(plain[0] / "pfdiff-run", engine, "--network", "gaussian", "-o", tmp_path / "x.npy")
    assert np.isfinite(np.load(tmp_path / "x.npy")).all()


def test_cuda_kernels_compile_for_every_architecture_without_warnings_or_spills(plain: tuple[Path, str]):
    if nvcc() is None:
        pytest.skip("needs nvcc")
    folder, said = plain
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    kernels = 27 + 12 + 2 + 2  # step, step with noise or a mask, noise, images
    assert len(spills) >= kernels * len(CAPABILITIES)
    assert set(spills) == {("0", "0")}
    assert set(re.findall(r"for '(sm_\d+)'", said)) == {f"sm_{one}" for one in CAPABILITIES}
    assert "warning" not in said.lower()
    # Four blocks of 128 threads at least; three with noise or a mask in programs of more than five states.
    registers = sorted(map(int, re.findall(r"Used (\d+) registers", said)))
    assert registers[-1] <= 168
    assert sum(one > 128 for one in registers) <= 3 * len(CAPABILITIES)
    # 77: no device here, and every call said so; 0: the kernels ran and agreed.
    done = subprocess.run([folder / "tests/native/pfdiff_test_cuda"], check=False)
    assert done.returncode in (0, 77)


@pytest.mark.parametrize("flavour", [[], ["-DPFD_TENSORRT_RTX"]], ids=["tensorrt", "rtx"])
def test_tensorrt_adapter_is_well_formed(flavour: list[str]):
    """Against the declarations of TensorRT's documentation: its own headers come in no package."""
    compiler = nvcc()
    if compiler is None:
        pytest.skip("needs the CUDA headers, which come with nvcc")
    plan = run(compiler, "--dryrun", "-c", ROOT / "kernels/native/noise.cu")
    include = re.search(r'INCLUDES="-I(\S+?)"', plan)
    assert include is not None, plan
    sources = [ROOT / "engine/native" / one for one in ("tensorrt/network.cpp", "run/tensorrt.cpp")]
    flags = ["-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror", *flavour]
    includes = ["-isystem", include[1], "-isystem", NATIVE / "mock", "-I", ROOT / "engine/native"]
    assert run("c++", *flags, *includes, *sources) == ""


def test_sources_keep_their_format():
    if shutil.which("clang-format") is None:
        pytest.skip("needs clang-format")
    folders = ("engine/native", "kernels/native", "tests/native")
    files = [
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".c", ".cpp", ".cu", ".cuh", ".h")
    ]
    assert files
    run("clang-format", "--dry-run", "--Werror", *files)


if importlib.util.find_spec("triton") is not None:

    def test_the_native_loader_knows_every_name_of_the_compiled_kernels():
        """cubins.cpp spells the variants' names itself: the same rule, written here from its source."""
        from pfdiff.kernels.variants import standard

        pattern = (
            r"step-b([1-8])-r([01]+)-w([01]+)(-n[01]+)?(-k[12])?(-clip)?-(fp32|fp16|bf16)(-(fp32|fp16|bf16))?(-any)?"
        )
        step = ["states", "y_in", "out", "table", "row", "elements"]
        for variant in standard():
            if variant.op.startswith("step"):
                match = re.fullmatch(pattern, variant.name)
                assert match is not None, variant.name
                assert len(match[2]) == len(match[3]) == int(match[1])
            eps = ["eps"] * ("-k2" in variant.name)
            assert [name for name, _ in variant.types] == {
                "step": step,
                "step-noise": [*step, "seeds", "factors", "size"],
                "step-mask": [*step, "picture", *eps, "mask", "kept"],
                "step-noise-mask": [*step, "seeds", "factors", "size", "picture", *eps, "mask", "kept"],
                "noise": ["z", "seeds", "elements"],
                "images": ["pixels", "x", "low", "factor", "area"],
            }[variant.op]
