"""The native runtime: built here with CMake, run by ctest, and compared with Python number by number."""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfdiff
from pfdiff.engine.artifact import read_artifact, records_of, write_manifest
from pfdiff.engine.compiler.basis import edm_preconditioning
from pfdiff.engine.compiler.compile import compile
from pfdiff.engine.compiler.program import Program
from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.engine.contract.condition import Condition
from pfdiff.engine.contract.contract import DecoderContract
from pfdiff.engine.contract.policy import Observed, PolicyContract

from .tree import MARKS, NATIVE, SHAPE, built, cmake, run, write_engine, write_network

SEEDS = [*range(5), 2**63, 2**64 - 1]

pytestmark = MARKS
__all__ = ["built"]  # a fixture, used by its name


@pytest.fixture(scope="module")
def library(built: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(next(str(path) for path in built.glob("libpfdiff.*") if path.suffix in (".so", ".dylib")))
    found.pfd_last_error.restype = ctypes.c_char_p
    return found


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


# Building and installing.
def test_ctest_passes_with_shared_libraries(built: Path):
    output = run("ctest", "--test-dir", built, "--output-on-failure", "-E", "fuzz")
    assert "100% tests passed" in output


def test_installed_package_builds_the_example(built: Path, tmp_path: Path):
    run("cmake", "--install", built, "--prefix", tmp_path / "prefix")
    options = [f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}", "-DCONTROL_LOOP_ONNXRUNTIME=OFF"]
    example = cmake(tmp_path / "example", *options, source=NATIVE / "example")
    engine = write_engine(tmp_path / "some.engine", "pfdiff:k=2,l=1", "cosine:300")
    output = run(example / "example", engine)
    assert output.startswith(f"pfdiff {pfdiff.__version__}: 4 samples of gaussian, the first begins ")
    run(example / "example", tmp_path / "none", status=1)
    assert len((NATIVE / "example" / "main.cpp").read_text().splitlines()) <= 40
    said = run(example / "control_loop", write_policy(tmp_path / "policy.engine"), 8, 200, 0.2)
    assert said.startswith("40 ticks at 200 Hz, ")
    assert "allocations: 0.00 a tick" in said
    assert "is no policy" in run(example / "control_loop", engine, 8, 200, 0.2, status=1)


def write_policy(folder: Path) -> Path:
    """An engine of actions [6, 2], of which number 1 to 3 are carried out."""
    write_engine(folder, "pfdiff:k=2,l=1", "cosine:300")
    artifact = read_artifact(folder)
    observation = Condition("observation", "float32", (2, 3))
    contract = replace(artifact.contract, shape=(6, 2), conditions=(observation,))
    observed = (Observed("observation", (2, 3)),)
    policy = PolicyContract(("observation",), observed, (2.0, 0.5), (1.0, -3.0), 1, 3)
    write_manifest(replace(artifact, contract=contract, policy=policy))
    return folder


def test_a_control_loops_actions_are_pythons(library: ctypes.CDLL, tmp_path: Path):
    folder = write_policy(tmp_path / "policy.engine")
    engine, control = ctypes.c_void_p(), ctypes.c_void_p()
    assert library.pfd_open(str(folder).encode(), ctypes.byref(engine)) == 0
    assert library.pfd_control_create(engine, 8, ctypes.byref(control)) == 0

    floats = ctypes.POINTER(ctypes.c_float)

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, floats, floats)
    def half(context, evaluation, x, out):
        for i in range(12):
            out[i] = x[i] / 2
        return 0

    program = read_artifact(folder).programs[8]
    for seed in (0, 7, 2**64 - 1):
        found = np.empty((3, 2), np.float32)
        assert library.pfd_control_sample(control, ctypes.c_uint64(seed), half, None, pointer(found)) == 0
        (sample,) = program.evaluate(lambda x, t: x / 2, pfdiff.noise([seed], (6, 2)).double().numpy())
        expected = (sample * [2.0, 0.5] + [1.0, -3.0])[1:4]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert library.pfd_control_create(engine, 5, ctypes.byref(control)) == 1
    assert b"no program of NFE 5" in library.pfd_last_error()


# The same numbers as Python.
def gaussian(schedule: str, prediction: str, sigma_data: float) -> Callable[[np.ndarray, float], np.ndarray]:
    """engine/native/analytic.h in float64: the exact network of Gaussian data."""
    process = parse_schedule(schedule)
    e = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    mean, std = 0.1 * (e % 5 - 2), 0.5 + 0.1 * (e % 3)

    def network(x: np.ndarray, t: float) -> np.ndarray:
        sigma_t = np.exp(4 * t) if prediction == "edm" else None
        alpha, sigma = (1.0, sigma_t) if sigma_t is not None else (float(process.alpha(t)), float(process.sigma(t)))
        c_skip = c_out = 1.0
        if prediction == "edm":
            c_in, c_skip, c_out, _ = edm_preconditioning(sigma, sigma_data)
            x = x / c_in
        x_0 = mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)
        eps = (x - alpha * x_0) / sigma
        found = {
            "x0": x_0,
            "eps": eps,
            "v": alpha * eps - sigma * x_0,
            "flow": eps - x_0,
            "edm": (x_0 - c_skip * x) / c_out,
        }
        return found[prediction]

    return network


def test_noise_is_pythons_bit_for_bit(library: ctypes.CDLL):
    for elements in (1, 784, 3 * 64 * 64, 1 << 18):
        seeds = np.array(SEEDS, np.uint64)
        found = np.empty((len(seeds), elements), np.float32)
        assert (
            library.pfd_noise(pointer(seeds), ctypes.c_int64(len(seeds)), ctypes.c_int64(elements), pointer(found)) == 0
        )
        np.testing.assert_array_equal(found, pfdiff.noise(SEEDS, (elements,)).numpy())


SAMPLERS = [
    ("ddim", "linear:1000", "eps", {"grid": "uniform"}),
    ("pfdiff:k=1,l=1", "linear:1000", "eps", {"grid": "logsnr"}),
    ("pfdiff:k=2,l=1", "cosine:300", "v", {"grid": "logsnr", "t_start": 290}),
    ("pfdiff:k=2,l=1", "flow", "flow", {"grid": "uniform", "t_start": 0.98}),
    ("pfdiff:k=2,l=1", "scaled_linear:1000", "x0", {"grid": "uniform", "clip": 1.0}),
    ("dpm++:2m", "vp", "eps", {"grid": "logsnr"}),
    ("dpm++:2m", "edm", "edm", {"grid": "karras"}),
    ("unipc:order=2", "linear:1000", "eps", {"grid": "logsnr"}),
    ("unipc:order=3", "vp", "v", {"grid": "logsnr", "clip": 2.0}),
    ("ddim:eps=own", "linear:1000", "eps", {"grid": "trailing", "clip": 0.3}),
    ("ddim:eps=own", "edm", "edm", {"grid": "karras", "clip": 0.3}),
]


@pytest.mark.parametrize(("solver", "schedule", "prediction", "options"), SAMPLERS)
def test_samples_are_pythons(built: Path, tmp_path: Path, solver: str, schedule: str, prediction: str, options: dict):
    engine = write_engine(tmp_path / "some.engine", solver, schedule, prediction=prediction, **options)
    program = Program.from_json(json.dumps(json.loads((engine / "engine.json").read_text())["programs"]["8"]))
    seeds = "0-4,9223372036854775808,18446744073709551615"
    run(
        built / "pfdiff-run",
        engine,
        "--network",
        "gaussian",
        "--seeds",
        seeds,
        "--threads",
        2,
        "-o",
        tmp_path / "x.npy",
    )
    found = np.load(tmp_path / "x.npy")
    assert found.dtype == np.float32
    assert found.shape == (len(SEEDS), *SHAPE)
    noise = pfdiff.noise(SEEDS, SHAPE).numpy()
    network = gaussian(schedule, prediction, program.sigma_data)
    exact = program.evaluate(network, noise.astype(np.float64))
    twin = in_float32(program, network, noise)
    assert np.linalg.norm(found - twin) <= 1e-6 * np.linalg.norm(exact)
    # A start at alpha = 0.006 magnifies the rounding of the noise 150 times: no float32 is within 1e-6 of float64.
    assert np.linalg.norm(found - exact) <= 2 * np.linalg.norm(twin - exact) + 1e-6 * np.linalg.norm(exact)
    assert np.linalg.norm(found - exact) <= 2e-5 * np.linalg.norm(exact)


def test_an_engine_with_a_decoder_gives_its_latents(built: Path, tmp_path: Path):
    plain = write_engine(tmp_path / "plain.engine", "pfdiff:k=2,l=1", "linear:1000")
    latent = write_engine(tmp_path / "latent.engine", "pfdiff:k=2,l=1", "linear:1000")
    write_network(latent / "decoder.onnx")
    artifact = read_artifact(plain)
    decoder = DecoderContract("decoder", SHAPE, (3, 8, 8), scaling=(0.5,) * SHAPE[0], shift=0.1)
    write_manifest(replace(artifact, path=latent, decoder=decoder, files=records_of(latent)))
    found = []
    for engine in (plain, latent):
        out = engine.with_suffix(".npy")
        run(built / "pfdiff-run", engine, "--network", "gaussian", "--seeds", "0-2", "-o", out)
        found.append(np.load(out))
    np.testing.assert_array_equal(*found)
    flip_last_byte(latent / "decoder.onnx")
    words = run(
        built / "pfdiff-run", latent, "--network", "gaussian", "--seeds", "0", "-o", tmp_path / "x.npy", status=2
    )
    assert "decoder.onnx" in words


def in_float32(program: Program, network: Callable[[np.ndarray, float], np.ndarray], noise: np.ndarray) -> np.ndarray:
    """The program by Python's plain twin of the kernels: float32 states, the network rounded to float32 once."""
    import torch

    from pfdiff.kernels import eager
    from pfdiff.kernels.table import coefficients, noise_factors, updates

    separate = bool((program.c_in != 1).any())
    arrays: dict[str, Any] = {"p": program.p, "W": program.W, "w": program.w}
    table = torch.from_numpy(
        coefficients(init=program.init, q=program.q, c_in=program.c_in, clip=program.clip, **arrays)
    )
    *rows, start = updates(clip=program.clip is not None, separate=separate, V=program.U, **arrays)
    factors = torch.from_numpy(noise_factors(program.U))
    states = torch.zeros(program.buffers, noise.size)
    y_in = torch.zeros(noise.size) if separate else None
    eager.step(states, y_in, torch.from_numpy(noise.ravel()), table, program.nfe, start)
    for n, row in enumerate(rows):
        x = (states[0] if y_in is None else y_in).numpy().reshape(noise.shape)
        out = network(x.astype(np.float64), float(program.network_times[n])).astype(np.float32)
        raw = torch.from_numpy(out.ravel())
        eager.step(states, y_in if row.separate else None, raw, table, n, row, None, factors, xi=raw)
    return states[0].numpy().reshape(noise.shape)


# Bad input.
def test_an_output_beside_no_clip_is_refused(library: ctypes.CDLL):
    plain = compile("ddim:eps=own", "linear:1000", 3, clip=1.0).to_dict() | {"clip": None}
    text, handle = json.dumps(plain).encode(), ctypes.c_void_p()
    status = library.pfd_program_from_json(text, ctypes.c_size_t(len(text)), ctypes.byref(handle))
    assert status != 0
    assert b"without a clip, expected a clip and no V" in library.pfd_last_error()


def damage(key: str, value: object) -> Callable[[Path], None]:
    def apply(engine: Path) -> None:
        manifest = json.loads((engine / "engine.json").read_text())
        manifest[key] = value
        (engine / "engine.json").write_text(json.dumps(manifest))

    return apply


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda engine: flip_last_byte(engine / "network.onnx"), "'network.onnx' has SHA-256"),
        (lambda engine: (engine / "network.onnx").write_bytes(b""), "has 0 bytes, expected "),
        (lambda engine: (engine / "network.onnx").unlink(), "cannot be opened"),
        (lambda engine: (engine / "engine.json").write_text("{"), "no valid JSON"),
        (damage("format", 2), "this library reads format 1; update pfdiff"),
        (damage("batch", [1, 2]), "its digest says"),
    ],
)
def test_damaged_engines_end_with_status_2_and_one_line(built: Path, tmp_path: Path, change, words: str):
    engine = write_engine(tmp_path / "some.engine", "ddim", "linear:1000")
    change(engine)
    said = run(built / "pfdiff-run", engine, "--network", "gaussian", "-o", tmp_path / "x.npy", status=2)
    assert words in said
    assert said.startswith("pfdiff-run: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "x.npy").exists()


@pytest.mark.parametrize("external", [{}, {"length": 4, "offset": 0}])
def test_weights_beside_the_network_must_be_listed(built: Path, tmp_path: Path, external: dict[str, int]):
    engine = write_engine(tmp_path / "some.engine", "ddim", "linear:1000")
    sample = (built / "pfdiff-run", engine, "--network", "gaussian", "-o", tmp_path / "x.npy")
    write_network(engine / "network.onnx", location="network.onnx.data", **external)
    (engine / "network.onnx.data").write_bytes(np.float32(1).tobytes())
    records = records_of(engine)
    manifest = json.loads((engine / "engine.json").read_text())
    for listed, status in ((True, 0), (False, 2)):
        files = {name: one for name, one in records.items() if listed or name != "network.onnx.data"}
        manifest["files"] = {name: {"sha256": one.sha256, "bytes": one.bytes} for name, one in files.items()}
        (engine / "engine.json").write_text(json.dumps(sealed(manifest)))
        said = run(*sample, status=status)
        assert said == "" or said == (
            "pfdiff-run: 'network.onnx' keeps weights in 'network.onnx.data', which is not among the files of "
            "engine.json; rebuild the engine with `pfdiff build`\n"
        )


def test_a_fixed_batch_beside_other_batches_is_refused(built: Path, tmp_path: Path):
    engine = write_engine(tmp_path / "some.engine", "ddim", "linear:1000")
    manifest = json.loads((engine / "engine.json").read_text())
    manifest["contract"]["fixed_batch"], manifest["batch"] = 3, [1, 2]
    (engine / "engine.json").write_text(json.dumps(sealed(manifest)))
    said = run(built / "pfdiff-run", engine, "--network", "gaussian", "-o", tmp_path / "x.npy", status=2)
    assert said.startswith("pfdiff-run: engine.json: batch is not [3], expected the fixed_batch of the network alone")


def sealed(manifest: dict) -> dict:
    """The manifest with the digest of its content, as engine/artifact.py defines it."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, "digest": hashlib.sha256(text.encode()).hexdigest()}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--nfe", "7"], "no program of NFE 7; it has 8"),
        (["--seeds", "5-3"], "runs backwards"),
        (["--seeds", "x"], "'x' is no seed; expected integers and ranges such as 0-15"),
        (["--seeds", "-1"], "'-1' is no seed; expected integers and ranges such as 0-15"),
        (["--seeds", "3,"], "'' is no seed"),
        (["--seeds", "1-2-3"], "expected a number"),
        (["--network", "none"], "is not built in"),
        (["--threads", "0"], "expected 1..1024"),
        (["--frobnicate"], "unknown option '--frobnicate'"),
        (["-o", "x.png"], "ends in .npy"),
        (["--seeds"], "needs a value"),
        (["--condition", "label=3"], "takes none"),
    ],
)
def test_bad_options_end_with_status_2_and_one_line(built: Path, tmp_path: Path, options: list[str], words: str):
    engine = write_engine(tmp_path / "some.engine", "ddim", "linear:1000")
    said = run(built / "pfdiff-run", engine, "--network", "gaussian", "-o", tmp_path / "x.npy", *options, status=2)
    assert words in said
    assert said.count("\n") == 1


# Speed is no test: the figures are in bench/results/*/native_update.json. What moves is one.
@pytest.mark.parametrize(("solver", "arrays"), [("ddim", 3), ("pfdiff:k=2,l=1", 4)])
def test_update_moves_each_array_once(built: Path, tmp_path: Path, solver: str, arrays: int):
    """DDIM reads its state and the output and writes the state; PFDiff reads anchor and output and writes two."""
    path = tmp_path / "program.json"
    path.write_text(compile(solver, "linear:1000", 8, "logsnr").to_json())
    figures = json.loads(run(built / "tests/native/pfdiff_bench_update", path, 1, 2, 2))
    assert figures["arrays"] == arrays
    assert figures["ratio"] > 0
