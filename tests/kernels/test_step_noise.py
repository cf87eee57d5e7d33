"""The noise that the step kernel makes: against its plain twin and float64, and the kernels compiled ahead of time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import pfdiff
from pfdiff.engine.philox import fill_numpy
from pfdiff.kernels import ahead, eager
from pfdiff.kernels.noise import seed_tensor
from pfdiff.kernels.step import BLOCK, step
from pfdiff.kernels.table import Update, noise_factors, row_length, updates
from pfdiff.kernels.variants import program_variants, standard, step_variant

pytest.importorskip("triton", reason="the kernels need Triton")

SEEDS = (3, 2**64 - 1, 0)


def draws(size: int, draw: int) -> torch.Tensor:
    """float32 [samples * size], the numbers of NumPy's Philox."""
    z = np.empty((len(SEEDS), size), np.float32)
    fill_numpy(z, np.array(SEEDS, np.uint64), draw)
    return torch.from_numpy(z).view(-1)


@pytest.mark.parametrize("row", [0, 1, 6])
@pytest.mark.parametrize("size", [1, 7, BLOCK - 1, BLOCK + 1])
def test_xi_is_the_draw_of_the_row(way: str, size: int, row: int) -> None:
    """V = 1 and all else 0: the states become xi, of state 1 twice that."""
    states = torch.full((2, 3 * size), 5.0)
    table, factors = torch.zeros(8, row_length(2)), torch.zeros(8, 2)
    factors[row] = torch.tensor([1.0, 2.0])
    step(states, None, torch.ones(3 * size), table, row, Update(0, 3, noise=3), seed_tensor(SEEDS), factors)
    xi = draws(size, row + 1)
    assert torch.equal(states[0], xi)  # bit for bit what NumPy makes
    assert torch.equal(states[1], 2 * states[0])


def test_given_noise_takes_the_place_of_the_seeds(way: str) -> None:
    size, xi = 37, torch.randn(3 * 37)
    states, out = torch.randn(2, 3 * size), torch.randn(3 * size)
    table, factors, update = torch.randn(3, row_length(2)), torch.randn(3, 2), Update(3, 3, noise=3)
    given, drawn = states.clone(), states.clone()
    step(given, None, out, table, 1, update, None, factors, xi=draws(size, 2))
    step(drawn, None, out, table, 1, update, seed_tensor(SEEDS), factors)
    assert torch.equal(given, drawn)
    step(states, None, out, table, 1, update, seed_tensor(SEEDS), factors, xi=xi)
    assert not torch.equal(states, drawn)
    with pytest.raises(ValueError, match=r"xi .* must be contiguous torch.float32 with 111 elements"):
        step(states, None, out, table, 1, update, None, factors, xi=xi[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("clip", [False, True])
def test_the_update_is_that_of_float64(way: str, dtype: torch.dtype, clip: bool) -> None:
    size, generator = 200, torch.Generator().manual_seed(0)
    update = Update(0b101, 0b111, clip, separate=True, noise=0b101)
    states, out = (torch.randn(*shape, generator=generator) for shape in ((3, 3 * size), (3 * size,)))
    table, factors = (torch.randn(4, columns, generator=generator) for columns in (row_length(3), 3))
    table[:, 2], out = 0.75, out.to(dtype)
    exact, y_exact = states.double(), torch.empty(3 * size, dtype=torch.float64)
    eager.step(exact, y_exact, out.double(), table.double(), 2, update, seed_tensor(SEEDS), factors.double())
    y_in = torch.empty(3 * size, dtype=dtype)
    step(states, y_in, out, table, 2, update, seed_tensor(SEEDS), factors)
    torch.testing.assert_close(states.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y_in.double(), y_exact, rtol=1e-2, atol=1e-2)


def test_a_sample_has_the_same_bits_in_any_batch(way: str) -> None:
    table, factors, out = torch.randn(2, row_length(1)), torch.ones(2, 1), torch.randn(3, 11)
    update = Update(1, 1, noise=1)
    states = torch.randn(1, 3, 11)
    whole, alone = states.clone().view(1, -1), states[:, 1].clone()
    step(whole, None, out.view(-1), table, 0, update, seed_tensor(SEEDS), factors)
    step(alone, None, out[1].contiguous(), table, 0, update, seed_tensor(SEEDS[1:2]), factors)
    assert torch.equal(whole.view(3, 11)[1], alone[0])


@pytest.mark.parametrize("solver", ["ddpm", "dpm++:2m-sde", "dpm++:3m-sde", "sa", "lcm", "consistency"])
def test_updates_of_a_program_are_its_reference(way: str, solver: str) -> None:
    """All rows one after the other, with masks of what they touch, on a network that is not linear."""
    from pfdiff.kernels.table import coefficients

    program = pfdiff.compile(solver, "linear:1000", 5, grid="trailing")
    size = 40
    arrays = {"p": program.p, "W": program.W, "w": program.w}
    rows = updates(p=program.p, W=program.W, w=program.w, clip=False, separate=False, V=program.V)
    numbers = coefficients(**arrays, init=program.init, q=program.q, c_in=program.c_in, clip=None)
    table, factors = torch.from_numpy(numbers), torch.from_numpy(noise_factors(program.V))
    assert [n for n, row in enumerate(rows) if row.noise] == list(program.draws)
    noise, states = draws(size, 0), torch.full((program.buffers, 3 * size), torch.nan)
    step(states, None, noise, table, program.nfe, rows[-1])
    for n in range(program.nfe):
        step(states, None, torch.tanh(states[0]), table, n, rows[n], seed_tensor(SEEDS), factors)
    expected = program.evaluate(lambda x, t: torch.tanh(x), noise.double().view(3, size), seeds=SEEDS)
    torch.testing.assert_close(states[0].view(3, size).double(), expected, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused(way: str) -> None:
    given = torch.zeros(1, 12), None, torch.zeros(12), torch.zeros(2, row_length(1)), 0, Update(1, 1, noise=1)
    seeds, factors = seed_tensor(SEEDS), torch.zeros(2, 1)
    for wrong, says in (
        ((None, factors), "give seeds and factors"),
        ((seeds, None), "give seeds and factors"),
        ((seeds.int(), factors), "must be int64"),
        ((seed_tensor(range(5)), factors), "one a sample"),
        ((seeds, torch.zeros(3, 1)), r"must be contiguous float32 \[2, 1\]"),
    ):
        with pytest.raises(ValueError, match=says):
            step(*given, *wrong)


def test_compiled_kernels_spill_nothing_and_move_no_more_bytes(tmp_path: Path) -> None:
    program = pfdiff.compile("sa", "linear:1000", 6)
    rows = updates(p=program.p, W=program.W, w=program.w, clip=False, separate=True, V=program.V)
    noisy = [one for one in program_variants(program.buffers, rows, "fp16") if "-n" in one.name]
    noisy += [step_variant(1, Update(1, 1, noise=1)), step_variant(2, Update(3, 3, noise=3), given=True)]
    for states, everything in ((5, 31), (8, 255)):
        row = Update(everything, everything, True, True, everything)
        noisy.append(step_variant(states, row, "bf16", "bf16", aligned=False))
    assert len(noisy) >= 5
    for record in ahead.compile_ahead([75, 90], tmp_path / "out", variants=noisy):
        assert record.spill_bytes == 0, record.name
        assert record.at_floor, record.name
        names = [name for name, _ in record.arguments]
        assert names[6:9] == ["seeds", "factors", "size"] or names[6:8] == ["factors", "xi"]
        assert record.op == "step-noise"


@pytest.mark.parametrize("solver", ["ddpm", "euler-a", "ddim:eta=0.5", "dpm++:sde", "dpm++:2m-sde", "lcm", "tcd", "sa"])
def test_programs_of_two_states_find_kernels_of_their_own(solver: str) -> None:
    """Those that `pfdiff kernels` compiles: they move no byte too many."""
    names = {variant.name for variant in standard()}
    for separate, dtype in ((False, "fp32"), (True, "fp32"), (True, "fp16"), (True, "bf16")):
        for nfe in (3, 5, 7):
            program = pfdiff.compile(solver, "linear:1000", nfe, grid="trailing")
            rows = updates(p=program.p, W=program.W, w=program.w, clip=False, separate=separate, V=program.V)
            wanted = {one.name for one in program_variants(program.buffers, rows, dtype)}
            if program.buffers <= 2:
                assert wanted <= names, (nfe, wanted - names)
