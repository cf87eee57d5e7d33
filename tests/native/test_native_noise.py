"""Noise on the way and masks in the C++ library: bit for bit the plain twin of the kernels, and Python's samples."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import pfdiff
from pfdiff.engine.compiler.program import Program
from pfdiff.engine.philox import fill_numpy
from pfdiff.kernels import eager
from pfdiff.kernels.kept import Kept
from pfdiff.kernels.noise import seed_tensor
from pfdiff.kernels.table import coefficients, kept_factors, noise_factors, updates

from .test_native import gaussian, library, pointer
from .tree import MARKS, SHAPE, built, run, write_engine

SEEDS = [*range(3), 2**63, 2**64 - 1]
SOLVERS = ("ddpm", "dpm++:3m-sde", "sa", "lcm", "tcd:gamma=0.5")

pytestmark = MARKS
__all__ = ["built", "library"]  # fixtures, used by their names


class Sampling(ctypes.Structure):
    """pfd_sampling_t"""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("threads", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("seeds", ctypes.c_void_p),
        ("steps_noise", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("picture", ctypes.c_void_p),
        ("known_factors", ctypes.c_void_p),
    )


def sampling(**arrays: np.ndarray) -> Sampling:
    """The arrays must be kept by the caller."""
    return Sampling(ctypes.sizeof(Sampling), 2, **{name: one.ctypes.data for name, one in arrays.items()})


@pytest.fixture
def opened(library: ctypes.CDLL) -> Iterator[ctypes._FuncPointer]:
    """program -> the library's own of it."""
    made: list[ctypes.c_void_p] = []

    def open_program(program: Program) -> ctypes.c_void_p:
        text, found = program.to_json().encode(), ctypes.c_void_p()
        status = library.pfd_program_from_json(text, ctypes.c_size_t(len(text)), ctypes.byref(found))
        assert status == 0, library.pfd_last_error()
        made.append(found)
        return found

    yield open_program  # pyright: ignore[reportReturnType]
    for one in made:
        library.pfd_program_free(one)


def test_step_noise_is_numpys_bit_for_bit(library: ctypes.CDLL) -> None:
    seeds = np.array(SEEDS, np.uint64)
    for elements in (1, 784, 49_152):
        for index in (0, 7):
            found, expected = (np.empty((len(seeds), elements), np.float32) for _ in range(2))
            sizes = ctypes.c_int64(len(seeds)), ctypes.c_int64(elements), ctypes.c_int32(index)
            assert library.pfd_step_noise(pointer(seeds), *sizes, pointer(found)) == 0
            fill_numpy(expected, seeds, index + 1)
            np.testing.assert_array_equal(found, expected)
    assert library.pfd_step_noise(pointer(seeds), *sizes[:2], ctypes.c_int32(-1), pointer(found)) == 1
    assert library.pfd_last_error() == b"the noise after evaluation -1; they count from 0"


@pytest.mark.parametrize("solver", [*SOLVERS, "pfdiff:k=2,l=1", "unipc:order=3"])
@pytest.mark.parametrize("given", ["seeds", "steps_noise"])
@pytest.mark.parametrize("clip", [None, 0.75])
def test_an_update_is_the_plain_twins_bit_for_bit(
    library: ctypes.CDLL, opened, solver: str, given: str, clip: float | None
) -> None:
    """With a mask and without, with a network's own input and without; samples that begin inside a block."""
    program = pfdiff.compile(solver, "linear:1000", 5, grid="trailing", clip=clip)
    handle, elements, random = opened(program), 411, np.random.default_rng(0)
    count = len(SEEDS) * elements
    arrays = {"p": program.p, "W": program.W, "w": program.w}
    table = torch.from_numpy(coefficients(**arrays, init=program.init, q=program.q, c_in=program.c_in, clip=clip))
    factors, pairs = torch.from_numpy(noise_factors(program.V)), random.standard_normal((5, 2))
    picture, noise, output = random.standard_normal((3, count), np.float32)
    mask = random.integers(0, 2, count, np.uint8)
    draws = random.standard_normal((max(program.noises, 1), count), np.float32)
    seeds = np.array(SEEDS, np.uint64)
    kept = Kept(*map(torch.from_numpy, (picture, noise, mask, kept_factors(*pairs.T))))
    for masked in (False, True):
        options = sampling(
            **({"seeds": seeds} if given == "seeds" else {"steps_noise": draws}),
            **({"mask": mask, "picture": picture, "known_factors": pairs} if masked else {}),
        )
        for separate in (False, True):
            rows = updates(
                p=program.p,
                W=program.W,
                w=program.w,
                clip=clip is not None,
                separate=separate,
                V=program.V,
                masked=masked,
            )
            for n, row in enumerate(rows[:-1]):
                states = random.standard_normal((program.buffers, count), np.float32)
                twin, y_in, fed = torch.from_numpy(states.copy()), torch.zeros(count), np.zeros(count, np.float32)
                xi = None
                if given == "steps_noise" and n in program.draws:
                    xi = torch.from_numpy(draws[program.draws.index(n)])
                own = y_in if row.separate else None
                out = torch.from_numpy(output)
                eager.step(twin, own, out, table, n, row, seed_tensor(SEEDS), factors, xi=xi, kept=kept)
                status = library.pfd_update_cpu_with(
                    handle,
                    ctypes.c_int32(n),
                    pointer(states),
                    pointer(output),
                    pointer(fed) if separate else None,
                    pointer(noise),
                    ctypes.c_int64(len(SEEDS)),
                    ctypes.c_int64(elements),
                    ctypes.byref(options),
                )
                assert status == 0, library.pfd_last_error()
                np.testing.assert_array_equal(states, twin.numpy())
                np.testing.assert_array_equal(fed, y_in.numpy())


@pytest.mark.parametrize("solver", SOLVERS)
def test_samples_are_pythons(built: Path, tmp_path: Path, solver: str) -> None:
    engine = write_engine(tmp_path / "some.engine", solver, "linear:1000", grid="trailing")
    program = Program.from_json(json.dumps(json.loads((engine / "engine.json").read_text())["programs"]["8"]))
    seeds = ",".join(map(str, SEEDS))
    found = []
    for batch in (2, 5):  # a seed is one image
        out = tmp_path / f"{batch}.npy"
        run(built / "pfdiff-run", engine, "--network", "gaussian", "--seeds", seeds, "--batch", batch, "-o", out)
        found.append(np.load(out))
    np.testing.assert_array_equal(*found)
    noise = pfdiff.noise(SEEDS, SHAPE).numpy().astype(np.float64)
    exact = program.evaluate(gaussian("linear:1000", "eps", 0.5), noise, seeds=SEEDS)
    # The start at alpha = 0.006 magnifies the rounding of the noise 150 times, as without noise on the way.
    assert np.linalg.norm(found[0] - exact) <= 2e-5 * np.linalg.norm(exact)


NETWORK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_float), ctypes.POINTER(ctypes.c_float)
)


@pytest.mark.parametrize("solver", ["pfdiff:k=2,l=1", "dpm++:2m", "ddpm"])
def test_a_mask_keeps_the_picture(library: ctypes.CDLL, opened, solver: str) -> None:
    """Against the program with the network's input replaced, in float64."""
    program = pfdiff.compile(solver, "linear:1000", 6, grid="trailing")
    handle, random, elements = opened(program), np.random.default_rng(1), 129
    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    at = np.sqrt(alphas[program.times.astype(int)])
    pairs = np.stack([[*at[1:], 1.0], [*np.sqrt(1 - at[1:] ** 2), 0.0]], axis=1).copy()
    picture, noise = random.standard_normal((2, len(SEEDS), elements), np.float32)
    mask, seeds = random.integers(0, 2, picture.shape, np.uint8), np.array(SEEDS, np.uint64)
    count = picture.size

    @NETWORK
    def network(context, evaluation, x, out) -> int:
        values = np.ctypeslib.as_array(x, (count,))
        np.ctypeslib.as_array(out, (count,))[:] = np.tanh(values)
        return 0

    state = noise.copy()
    options = sampling(seeds=seeds, mask=mask, picture=picture, known_factors=pairs)
    sizes = ctypes.c_int64(len(SEEDS)), ctypes.c_int64(elements)
    arguments = handle, network, None, pointer(state), *sizes
    assert library.pfd_sample_cpu_with(*arguments, ctypes.byref(options)) == 0, library.pfd_last_error()

    def replaced(x: np.ndarray, t: float) -> np.ndarray:
        n = program.network_times.tolist().index(t)
        known = pairs[n - 1, 0] * picture + pairs[n - 1, 1] * noise
        return np.tanh(x if n == 0 else np.where(mask, x, known))

    exact = program.evaluate(replaced, noise.astype(np.float64), seeds=SEEDS if program.noises else None)
    exact = np.where(mask, exact, picture)
    assert np.abs(state - exact).max() <= 1e-4
    np.testing.assert_array_equal(state[mask == 0], picture[mask == 0])

    # What is not complete is refused before the network is asked.
    for wrong, says in (
        (sampling(seeds=seeds, mask=mask, picture=picture), b"a mask without a picture or its known_factors"),
        (Sampling(), b"a struct_size of 0"),
        *(((sampling(), b"noises on the way; give seeds, one a sample, or steps_noise"),) if program.noises else ()),
    ):
        assert library.pfd_sample_cpu_with(*arguments, ctypes.byref(wrong)) == 1
        assert says in library.pfd_last_error()


def test_the_old_call_refuses_what_needs_more(library: ctypes.CDLL, opened) -> None:
    handle = opened(pfdiff.compile("ddpm", "linear:1000", 4, grid="trailing"))
    state = np.zeros(8, np.float32)
    sizes = ctypes.c_int64(1), ctypes.c_int64(8), ctypes.c_int32(1)
    assert library.pfd_sample_cpu(handle, NETWORK(lambda *_: 0), None, pointer(state), *sizes) == 1
    assert library.pfd_last_error().startswith(b"ddpm draws 3 noises on the way; give seeds")
