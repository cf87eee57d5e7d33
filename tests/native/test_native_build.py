"""The native runtime in every way of building it: sanitizers, clean clone, CUDA for all architectures, TensorRT."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from .tree import MARKS, NATIVE, ROOT, cmake, run, write_engine

CAPABILITIES = (75, 80, 86, 89, 90, 100, 120)

pytestmark = MARKS


def test_sanitizers_find_nothing_in_12000_damaged_engines(tmp_path: Path):
    options = ["-DPFDIFF_SANITIZE=ON", "-DPFDIFF_CUDA=OFF", "-DPFDIFF_ONNXRUNTIME=OFF", "-DPFDIFF_TENSORRT=OFF"]
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


# The plain way of a clean clone: static, our own JSON reader, CUDA when nvcc is there, no GPU.
def nvcc() -> str | None:
    return os.environ.get("CUDACXX") or shutil.which("nvcc")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A build as from a clean clone with a compiler and CMake alone, and what its build said."""
    folder = tmp_path_factory.mktemp("plain")
    options = ["-DPFDIFF_JSON=BUILTIN", "-DPFDIFF_WERROR=ON", "-DPFDIFF_ONNXRUNTIME=OFF", "-DPFDIFF_TENSORRT=OFF"]
    options.append(f"-DPFDIFF_CUDA={'OFF' if nvcc() is None else 'ON'}")
    run("cmake", "-S", ROOT, "-B", folder, *options)
    targets = ["pfdiff-run"] if nvcc() is None else ["pfdiff-run", "pfdiff_test_cuda"]
    return folder, run("cmake", "--build", folder, "-j2", "--target", *targets)


def test_without_nlohmann_json_the_built_in_reader_opens_engines(plain: tuple[Path, str], tmp_path: Path):
    engine = write_engine(tmp_path / "some.engine", "ddim", "linear:1000")
    run(plain[0] / "pfdiff-run", engine, "--network", "gaussian", "-o", tmp_path / "x.npy")
    assert np.isfinite(np.load(tmp_path / "x.npy")).all()


def test_cuda_kernels_compile_for_every_architecture_without_warnings_or_spills(plain: tuple[Path, str]):
    if nvcc() is None:
        pytest.skip("needs nvcc")
    folder, said = plain
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    kernels = 30 + 2 + 2  # step, noise, images
    assert len(spills) >= kernels * len(CAPABILITIES)
    assert set(spills) == {("0", "0")}
    assert set(re.findall(r"for '(sm_\d+)'", said)) == {f"sm_{one}" for one in CAPABILITIES}
    assert "warning" not in said.lower()
    assert max(map(int, re.findall(r"Used (\d+) registers", said))) <= 128  # four blocks of 128 threads, at least
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
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".c", ".cpp", ".cu", ".h")
    ]
    assert files
    run("clang-format", "--dry-run", "--Werror", *files)


if importlib.util.find_spec("triton") is not None:

    def test_the_native_loader_knows_every_name_of_the_compiled_kernels():
        """cubins.cpp spells the variants' names itself: the same rule, written here from its source."""
        from pfdiff.kernels.variants import standard

        pattern = r"step-b([1-5])-r([01]+)-w([01]+)(-clip)?-(fp32|fp16|bf16)(-(fp32|fp16|bf16))?(-any)?"
        for variant in standard():
            if variant.op == "step":
                match = re.fullmatch(pattern, variant.name)
                assert match is not None, variant.name
                assert len(match[2]) == len(match[3]) == int(match[1])
            assert [name for name, _ in variant.types] == {
                "step": ["states", "y_in", "out", "table", "row", "elements"],
                "noise": ["z", "seeds", "elements"],
                "images": ["pixels", "x", "low", "factor", "area"],
            }[variant.op]
