"""engine/runtime/noise.py: what is compiled and what NumPy computes are the same bits."""

from __future__ import annotations

import importlib.metadata
import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import pfdiff.engine.runtime.noise as engine_noise
import pfdiff.engine.runtime.update as engine_update
from pfdiff.engine.philox import BLOCK, fill_numpy
from pfdiff.engine.runtime.noise import noise

SEEDS = np.array([0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1, 0x299F31D0A4093822], np.uint64)

compiled = pytest.mark.skipif(
    engine_noise.fill_compiled is None, reason="engine/runtime/_cpu.cpp was not compiled when pfdiff was installed"
)


@compiled
@pytest.mark.parametrize("elements", [1, 2, 7, 784, BLOCK - 1, BLOCK + 1, 3 * 256 * 256])
def test_compiled_noise_is_numpys_bit_for_bit(elements: int) -> None:
    found, expected = (np.full((len(SEEDS), elements), np.nan, np.float32) for _ in range(2))
    engine_noise.fill_compiled(found, SEEDS)
    fill_numpy(expected, SEEDS)
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@compiled
@pytest.mark.parametrize(
    ("z", "seeds"),
    [
        (np.zeros((7, 4), np.float64), SEEDS),
        (np.zeros((7, 4), np.float32), SEEDS.astype(np.uint32)),
        (np.zeros((6, 4), np.float32), SEEDS),
        (np.zeros((7, 4), np.float32), SEEDS[:0]),
        (np.zeros((7, 8), np.float32)[:, ::2], SEEDS),
        (np.zeros((7, 4), np.float32), np.repeat(SEEDS, 2)[::2]),
    ],
    ids=["float64", "uint32", "too few samples", "no seeds", "z strided", "seeds strided"],
)
def test_memory_that_does_not_fit_is_refused_and_left_alone(z: np.ndarray, seeds: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"float32|contiguous"):
        engine_noise.fill_compiled(z, seeds)
    assert not z.any()


@compiled
def test_memory_that_is_not_to_be_written_is_refused() -> None:
    z = np.zeros((7, 4), np.float32)
    z.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        engine_noise.fill_compiled(z, SEEDS)


def test_what_can_be_compiled_was() -> None:
    """The installation goes on without a compiler, and every comparison with the compiled code would skip."""
    try:
        importlib.metadata.distribution("pfdiff")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("pfdiff is not installed here, only on the path")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if shutil.which("g++") is None or not headers.is_file():
        pytest.skip("no g++ or no headers of Python")
    assert engine_noise.fill_compiled is not None
    assert engine_update.combine_compiled is not None


def test_noise_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = noise(range(5), (3, 7))
    monkeypatch.setattr(engine_noise, "fill_compiled", None)
    assert noise(range(5), (3, 7)).equal(usual)
