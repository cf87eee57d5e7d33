"""The masked update: the kernel against its plain twin and float64, what it keeps, and its compiled form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import pfdiff
from pfdiff.kernels import ahead, eager
from pfdiff.kernels.kept import Kept
from pfdiff.kernels.noise import seed_tensor
from pfdiff.kernels.step import BLOCK, MANY, MAX_BUFFERS, step
from pfdiff.kernels.table import Update, coefficients, kept_factors, noise_factors, row_length, updates
from pfdiff.kernels.variants import program_variants, standard, step_variant

pytest.importorskip("triton", reason="the kernels need Triton")

SEEDS = (3, 2**64 - 1, 0)


def some_kept(size: int, rows: int, seed: int = 0) -> Kept:
    generator = torch.Generator().manual_seed(seed)
    picture, eps = torch.randn(2, size, generator=generator)
    mask = torch.randint(0, 2, (size,), generator=generator, dtype=torch.uint8)
    return Kept(picture, eps, mask, torch.randn(rows, 2, generator=generator))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 997, BLOCK, BLOCK + 1])
@pytest.mark.parametrize("keeps", [1, 2])
def test_the_mask_keeps_the_picture_and_leaves_the_rest(way: str, dtype: torch.dtype, size: int, keeps: int) -> None:
    """Against the same update without a mask, and float64 for what is kept."""
    update, kept = Update(0b11, 0b11, True, True, 0, keeps), some_kept(size, 4)
    states, out, table = torch.randn(2, size), torch.randn(size).to(dtype), torch.randn(4, row_length(2))
    table[:, 2], table[:, 3] = 0.75, 1.0
    free, y_free = states.clone(), torch.empty(size, dtype=dtype)
    step(free, y_free, out, table, 2, Update(0b11, 0b11, True, True))
    y_in = torch.empty(size, dtype=dtype)
    step(states, y_in, out, table, 2, update, kept=kept)
    a, b = kept.factors[2].double()
    exact = a * kept.picture.double() + (b * kept.eps.double() if keeps == 2 else 0)
    fresh = kept.mask != 0
    assert torch.equal(states[1], free[1])
    assert torch.equal(states[0, fresh], free[0, fresh])
    assert torch.equal(y_in[fresh], y_free[fresh])
    torch.testing.assert_close(states[0, ~fresh].double(), exact[~fresh], rtol=1e-6, atol=1e-6)
    assert torch.equal(y_in[~fresh], states[0, ~fresh].to(dtype))


@pytest.mark.parametrize("given", [False, True], ids=["seeds", "given"])
def test_kernel_and_plain_twin_have_the_same_bits(given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    size = 3 * 501
    kept, factors = some_kept(size, 3), torch.randn(3, 3)
    states, out, table = torch.randn(3, size), torch.randn(size), torch.randn(3, row_length(3))
    update, twin = Update(0b110, 0b111, False, False, 0b11, 2), states.clone()
    xi = torch.randn(size) if given else None
    step(states, None, out, table, 1, update, seed_tensor(SEEDS), factors, xi=xi, kept=kept)
    eager.step(twin, None, out, table, 1, update, seed_tensor(SEEDS), factors, xi=xi, kept=kept)
    assert torch.equal(states, twin)


def test_a_nan_where_the_mask_is_zero_goes_no_further(way: str) -> None:
    kept = some_kept(8, 2)
    states, out = torch.zeros(1, 8), torch.zeros(8)
    out[kept.mask == 0] = torch.nan
    step(states, None, out, torch.ones(2, row_length(1)), 0, Update(1, 1, keeps=2), kept=kept)
    assert states.isfinite().all()


@pytest.mark.parametrize("solver", ["ddim", "pfdiff:k=2,l=1", "dpm++:2m", "unipc:order=3", "ddpm", "sa"])
@pytest.mark.parametrize("separate", [False, True], ids=["shared", "separate"])
def test_updates_of_a_program_are_its_reference(way: str, solver: str, separate: bool) -> None:
    """All rows one after the other; the reference is the program with the network's input replaced."""
    program = pfdiff.compile(solver, "linear:1000", 5, grid="trailing")
    size, alphas = 3 * 40, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    kept = some_kept(size, 6)
    at = [float(alphas[int(t)]) for t in program.times]
    a, b = [*np.sqrt(at[1:]), 1.0], [*np.sqrt(1 - np.array(at[1:])), 0.0]
    kept = Kept(kept.picture, kept.eps, kept.mask, torch.from_numpy(kept_factors(a, b)))
    arrays = {"p": program.p, "W": program.W, "w": program.w}
    rows = updates(**arrays, clip=False, separate=separate, V=program.V, masked=True)
    numbers = coefficients(**arrays, init=program.init, q=program.q, c_in=program.c_in, clip=None)
    table, factors = torch.from_numpy(numbers), torch.from_numpy(noise_factors(program.V))
    assert [row.keeps for row in rows] == [2, 2, 2, 2, 1, 0]

    states = torch.full((program.buffers, size), torch.nan)
    y_in = torch.empty(size) if separate else None
    step(states, y_in, kept.eps, table, 5, rows[-1])
    for n in range(5):
        out = torch.tanh(states[0] if y_in is None else y_in)
        own = y_in if rows[n].separate else None
        step(states, own, out, table, n, rows[n], seed_tensor(SEEDS), factors, kept=kept)

    fresh, picture, eps = (one.double().view(3, 40) for one in (kept.mask, kept.picture, kept.eps))

    def known(alpha: float) -> torch.Tensor:
        return alpha**0.5 * picture + (1 - alpha) ** 0.5 * eps

    def network(x: torch.Tensor, t: float) -> torch.Tensor:
        first = t == program.network_times[0]
        return torch.tanh(x if first else torch.where(fresh == 1, x, known(float(alphas[int(t)]))))

    expected = program.evaluate(network, eps, seeds=SEEDS if program.noises else None)
    expected = torch.where(fresh == 1, expected, picture)
    torch.testing.assert_close(states[0].view(3, 40).double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(states[0][kept.mask == 0], kept.picture[kept.mask == 0])


def test_what_does_not_fit_is_refused(way: str) -> None:
    kept = some_kept(12, 2)
    given = torch.zeros(1, 12), None, torch.zeros(12), torch.zeros(2, row_length(1)), 0, Update(1, 1, keeps=2)
    for wrong, says in (
        (None, "give kept"),
        (Kept(kept.picture[1:], kept.eps, kept.mask, kept.factors), "picture .* with 12 elements"),
        (Kept(kept.picture, kept.eps.double(), kept.mask, kept.factors), "eps .* of torch.float64"),
        (Kept(kept.picture, kept.eps, kept.mask.float(), kept.factors), "mask .* must be contiguous torch.uint8"),
        (Kept(kept.picture, kept.eps, kept.mask, kept.factors[:1]), r"float32 \[2, 2\]"),
    ):
        with pytest.raises(ValueError, match=says):
            step(*given, kept=wrong)


def test_compiled_kernels_spill_nothing_and_move_no_more_bytes(tmp_path: Path) -> None:
    program = pfdiff.compile("pfdiff:k=2,l=1", "linear:1000", 4)
    rows = updates(p=program.p, W=program.W, w=program.w, clip=False, separate=True, masked=True)
    some = [one for one in program_variants(program.buffers, rows, "fp16") if one.op == "step-mask"]
    some += [step_variant(5, Update(31, 31, True, True, 0, 2), dtype, dtype) for dtype in ("bf16", "fp32")]
    some.append(step_variant(5, Update(31, 31, True, True, 31, 2), "bf16", "bf16", aligned=False))
    some.append(step_variant(2, Update(3, 3, True, True, 3, 2), "fp16", "fp16"))
    some.append(step_variant(8, Update(255, 255, True, True, 255, 2), "fp16", "fp16", aligned=False))
    assert len(some) == 8
    for record in ahead.compile_ahead([75, 90], tmp_path / "out", variants=some):
        assert record.spill_bytes == 0, record.name
        assert record.at_floor, record.name
        mask_alone = 8 if record.name.endswith("-any") else 64  # bits a thread, eight elements of a byte
        assert set(record.load_bits) - {16, 32, 128} == {mask_alone}, record.name


def test_what_is_compiled_ahead_serves_every_masked_update() -> None:
    names = {variant.name for variant in standard()}
    for buffers in range(1, MAX_BUFFERS + 1):
        everything = (1 << buffers) - 1
        for dtype, y in (("fp32", None), ("fp32", "fp32"), ("fp16", "fp16"), ("bf16", "bf16")):
            for clip in (False, True):
                for noise in (0, everything):
                    middle = Update(everything, everything, clip, y is not None, noise, keeps=2)
                    last = Update(everything, 1, clip, False, noise & 1, keeps=1)
                    assert step_variant(buffers, middle, dtype, y, aligned=buffers < MANY).name in names
                    assert step_variant(buffers, last, dtype, aligned=False).name in names
