"""The sources of the CUDA kernels, compiled for the CPU (cuda_on_cpu): the bits of every other way to run an update."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pfdiff.engine.philox import fill_numpy
from pfdiff.kernels import eager
from pfdiff.kernels.kept import Kept
from pfdiff.kernels.noise import BLOCK as NOISE_BLOCK
from pfdiff.kernels.noise import seed_tensor
from pfdiff.kernels.step import MAX_BUFFERS, step
from pfdiff.kernels.table import Update, row_length
from pfdiff.kernels.variants import standard

from .tree import MARKS, built, run

pytestmark = MARKS
__all__ = ["built"]  # a fixture, used by its name

SEEDS = (3, 2**64 - 1, 0, 2**63)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def compiled(built: Path) -> Any:
    library = next(built.rglob("libpfdiff_cuda_on_cpu.*"))
    return ctypes.CDLL(str(library)).pfdiff_test_step


def by_cuda(compiled: Any, states, y_in, out, table, row: int, update: Update, seeds, factors, kept: Kept) -> None:
    """`step` by kernels/native/step.cu and step_extras.cu."""

    def address(tensor: torch.Tensor | None) -> ctypes.c_void_p:
        return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())

    elements = states.shape[1]
    status = compiled(
        address(states),
        address(y_in),
        address(out),
        address(table),
        ctypes.c_int64(elements),
        *(len(states), row, update.reads, update.writes, int(update.clip)),
        *(DTYPES.index(out.dtype), 0 if y_in is None else DTYPES.index(y_in.dtype)),
        address(seeds),
        address(factors),
        ctypes.c_int64(elements // len(seeds)),
        update.noise,
        *(address(one) for one in (kept.picture, kept.eps, kept.mask, kept.factors)),
        update.keeps,
    )
    assert status == 0


def by_numpy(states, out, table, row: int, update: Update, factors, kept: Kept) -> tuple[np.ndarray, np.ndarray]:
    """(states, y_in before it is cast) by NumPy's float32, written from the formula in kernels/step.py."""
    s, z, numbers = states.numpy().copy(), out.float().numpy(), table[row].numpy()
    buffers, elements = s.shape
    p, q, bound, c_in = numbers[:4]
    w, W = numbers[4 : 4 + buffers], numbers[4 + buffers :].reshape(buffers, buffers)
    if update.clip:
        z = np.clip(p * s[0] + q * z if update.reads & 1 else q * z, -bound, bound)
    xi = np.empty((len(SEEDS), elements // len(SEEDS)), np.float32)
    fill_numpy(xi, np.array(SEEDS, np.uint64), row + 1)
    after = {}
    for j in range(buffers):
        s_j = w[j] * z
        for i in range(buffers):
            if update.reads >> i & 1:
                s_j = s_j + W[j, i] * s[i]
        if update.noise >> j & 1:
            s_j = s_j + factors[row, j].numpy() * xi.reshape(-1)
        if update.keeps and j == 0:
            a, b = kept.factors[row].numpy()
            known = a * kept.picture.numpy()
            s_j = np.where(kept.mask.numpy(), s_j, known + b * kept.eps.numpy() if update.keeps == 2 else known)
        after[j] = s_j
    for j in range(buffers):
        if update.writes >> j & 1:
            s[j] = after[j]
    return s, c_in * after[0]


@pytest.mark.parametrize("what", ["plain", "noise", "mask", "both"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("buffers", [1, 2, 5, MAX_BUFFERS])
def test_every_way_to_run_an_update_has_the_same_bits(
    compiled: Any, buffers: int, dtype: torch.dtype, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interpreter, plain twin, NumPy, CUDA C++; samples that begin inside a vector, and data that are not aligned."""
    random = torch.Generator().manual_seed(buffers)
    everything = (1 << buffers) - 1
    for size, clip in ((82, True), (82, False), (131, True)):
        elements = len(SEEDS) * size
        states, table = (torch.randn(*one, generator=random) for one in ((buffers, elements), (4, row_length(buffers))))
        table[:, 2] = 0.75
        out = torch.randn(elements, generator=random).to(dtype)
        factors, (picture, eps) = torch.randn(4, buffers, generator=random), torch.randn(2, elements, generator=random)
        mask = torch.randint(0, 2, (elements,), generator=random, dtype=torch.uint8)
        kept = Kept(picture.contiguous(), eps.contiguous(), mask, torch.randn(4, 2, generator=random))
        noise, keeps = (everything & 0b10101101 if what in ("noise", "both") else 0), what in ("mask", "both")
        for last in (False, True):
            update = Update(everything, 1 if last else everything, clip, not last, noise, (1 if last else 2) * keeps)
            seeds, found = seed_tensor(SEEDS), []
            for way in ("1", "0", "cuda"):
                s, y = states.clone(), None if last else torch.zeros(elements, dtype=dtype)
                if way == "cuda":
                    by_cuda(compiled, s, y, out, table, 2, update, seeds, factors, kept)
                else:
                    monkeypatch.setenv("TRITON_INTERPRET", way)
                    (step if way == "1" else eager.step)(s, y, out, table, 2, update, seeds, factors, kept=kept)
                found.append((s, y))
            s, y_exact = by_numpy(states, out, table, 2, update, factors, kept)
            found.append((torch.from_numpy(s), None if last else torch.from_numpy(y_exact).to(dtype)))
            for s, y in found[1:]:
                assert torch.equal(s, found[0][0])
                assert last or torch.equal(y, found[0][1])


def test_what_is_compiled_ahead_serves_every_update_of_the_native_sampler(built: Path, tmp_path: Path) -> None:
    """test_cuda.cpp on the standard kernels by name: updates of 1 to 8 states, with noise, with a mask, with both."""
    kernels = []
    for variant in standard():
        if variant.op == "images":
            continue
        (tmp_path / f"{variant.name}.cubin").write_bytes(
            " ".join([variant.name, *(name for name, _ in variant.types), "end"]).encode() + b"\0"
        )
        arguments = [{"name": name, "multiple_of": 16 if name in variant.promised else 1} for name, _ in variant.types]
        entry = {"capability": 90, "name": variant.name, "symbol": "step_kernel", "block": variant.block}
        entry |= {"threads": 128, "shared_bytes": 0, "arguments": arguments, "cubin": f"{variant.name}.cubin"}
        kernels.append(entry)
    (tmp_path / "index.json").write_text(json.dumps({"format": 1, "kernels": kernels}))
    assert NOISE_BLOCK == 512  # cuda_on_cpu/driver.cpp divides by it
    run(next(built.rglob("pfdiff_test_cuda_on_cpu")), tmp_path)
