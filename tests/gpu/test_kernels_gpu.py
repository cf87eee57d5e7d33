"""The compiled kernels on a real GPU: against float64, against their twins and the interpreter bit for bit, in a graph.

What the interpreter cannot show: the code that ptxas made, offsets beyond 2^31, replays that read a changed table and
changed seeds, launches that never wait for the device.
"""

from __future__ import annotations

import pytest
import torch

from pfdiff.kernels import eager
from pfdiff.kernels.images import images
from pfdiff.kernels.noise import noise, seed_tensor
from pfdiff.kernels.step import BLOCK, step
from pfdiff.kernels.table import Update, row_length

from ..comparator import assert_as_good_as_plain

pytest.importorskip("triton", reason="the kernels need Triton")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs an NVIDIA GPU with a driver and a CUDA build of torch"
    ),
]

SIZES = [1, 997, BLOCK - 1, BLOCK, BLOCK + 1, 64 * BLOCK, 1_000_003]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def inputs(buffers: int, size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States [B, n], network output [n] and a table of three rows, on the CPU."""
    generator = torch.Generator().manual_seed(size + buffers)
    table = torch.randn(3, row_length(buffers), generator=generator)
    table[:, 2] = 0.75
    states = torch.randn(buffers, size, generator=generator)
    return states, torch.randn(size, generator=generator).to(dtype), table


def plain(states, out, table, update: Update) -> tuple[torch.Tensor, torch.Tensor]:
    """Row 1 of the table for full masks, in the dtype of the states: (states, y_in before it is cast)."""
    buffers, numbers = len(states), table[1]
    z = out.to(states.dtype)
    if update.clip:
        z = (numbers[0] * states[0] + numbers[1] * z).clamp(-0.75, 0.75)
    W = numbers[4 + buffers :].view(buffers, buffers)
    after = (W[:, :, None] * states).sum(1) + numbers[4 : 4 + buffers, None] * z
    return after, numbers[3] * after[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("clip", [False, True], ids=["free", "clip"])
@pytest.mark.parametrize("buffers", [1, 2, 3, 4, 5, 8])
def test_step_matches_float64_and_its_twin(buffers: int, clip: bool, dtype: torch.dtype) -> None:
    update = Update((1 << buffers) - 1, (1 << buffers) - 1, clip, True)
    columns: list[tuple[torch.Tensor, ...]] = []
    for size in SIZES:
        states, out, table = inputs(buffers, size, dtype)
        found, y_in = states.cuda(), torch.full((size,), 7.0, dtype=dtype, device="cuda")
        step(found, y_in, out.cuda(), table.cuda(), 1, update)
        twin, twin_y = states.clone(), torch.empty(size, dtype=dtype)
        eager.step(twin, twin_y, out, table, 1, update)
        assert torch.equal(found.cpu(), twin)
        assert torch.equal(y_in.cpu(), twin_y)
        by_plain, plain_y = plain(states, out, table, update)
        exact, exact_y = plain(states.double(), out, table.double(), update)
        columns.append((found.cpu(), by_plain, exact, y_in.cpu(), plain_y.to(dtype), exact_y))
    actual, by_plain, exact, y_in, plain_y, exact_y = (
        torch.cat([tensor.flatten() for tensor in column]) for column in zip(*columns, strict=True)
    )
    assert_as_good_as_plain(actual=actual, plain=by_plain, exact=exact)
    assert_as_good_as_plain(actual=y_in, plain=plain_y, exact=exact_y)


@pytest.mark.parametrize("separate", [False, True], ids=["shared", "separate"])
def test_states_outside_the_masks_are_neither_read_nor_written(separate: bool) -> None:
    for reads in range(4):
        for writes in range(4):
            states, out, table = inputs(2, 997, torch.float16)
            for state in range(2):
                if not reads >> state & 1:
                    states[state] = torch.nan
            update = Update(reads, writes, True, separate)
            y_in = torch.empty(997, dtype=torch.float16, device="cuda") if separate else None
            found, twin = states.cuda(), states.clone()
            step(found, y_in, out.cuda(), table.cuda(), 1, update)
            eager.step(twin, None if y_in is None else torch.empty_like(y_in, device="cpu"), out, table, 1, update)
            assert torch.equal(found.cpu().nan_to_num(99.0), twin.nan_to_num(99.0))
            assert y_in is None or y_in.isfinite().all()


def test_an_odd_address_is_as_good_as_an_even_one() -> None:
    """A view that starts 4 bytes into its memory: no 16-byte access may be assumed."""
    states, out, table = inputs(1, 4096, torch.float16)
    update = Update(1, 1, False, True)
    memory = torch.zeros(4097, device="cuda")
    found = memory[1:].view(1, 4096)
    found.copy_(states)
    halves = torch.zeros(4097, dtype=torch.float16, device="cuda")
    step(found, halves[1:], out.cuda(), table.cuda(), 1, update)
    twin, twin_y = states.clone(), torch.empty(4096, dtype=torch.float16)
    eager.step(twin, twin_y, out, table, 1, update)
    assert torch.equal(found.cpu(), twin)
    assert torch.equal(halves[1:].cpu(), twin_y)
    assert memory[0] == 0
    assert halves[0] == 0


def test_offsets_beyond_two_to_the_31() -> None:
    size = 2**31 + 17
    needed = size * (4 + 2) + 2**30
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory")
    states = torch.ones(1, size, device="cuda")
    out = torch.full((size,), 2.0, dtype=torch.float16, device="cuda")
    table = torch.tensor([[0.0, 0.0, 0.0, 1.0, 3.0, 5.0]], device="cuda")  # s <- 3 out + 5 s
    step(states, None, out, table, 0, Update(1, 1))
    assert states[0, :16].eq(11).all()
    assert states[0, 2**31 - 8 :].eq(11).all()
    assert states.min() == states.max() == 11


@pytest.mark.parametrize("size", [1, 997, 3 * 64 * 64, 500_009])
def test_noise_is_the_interpreters_bits_and_the_exact_normal(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = [0, 1, 2**63, 2**64 - 1]
    z = torch.full((len(seeds), size), torch.nan, device="cuda")
    noise(z, seed_tensor(seeds, "cuda"))
    exact = torch.empty(len(seeds), size, dtype=torch.float64)
    eager.noise(exact, seed_tensor(seeds))
    assert ((z.cpu().double() - exact).abs() <= 4 * torch.finfo(torch.float32).eps * exact.abs()).all()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    few = min(size, 20_000)
    interpreted = torch.empty(len(seeds), few)
    noise(interpreted, seed_tensor(seeds))
    assert torch.equal(z[:, :few].cpu(), interpreted)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 3, 5, 7), (64, 1, 28, 28), (8, 3, 64, 64), (1, 4, 1, 997)], ids=str
)
def test_images_equal_their_twin(shape: tuple[int, ...]) -> None:
    x = 1.5 * torch.randn(shape, generator=torch.Generator().manual_seed(3))
    x.view(-1)[0] = torch.nan
    samples, channels, height, width = shape
    twin = torch.empty(samples, height, width, channels, dtype=torch.uint8)
    pixels = torch.full_like(twin, 99, device="cuda")
    images(pixels, x.cuda(), -1, 1)
    eager.images(twin, x, -1, 1)
    assert torch.equal(pixels.cpu(), twin)


def test_launches_do_not_wait_for_the_device() -> None:
    states, out, table = (tensor.cuda() for tensor in inputs(2, 4096, torch.float16))
    y_in, seeds = torch.empty_like(out), seed_tensor([1, 2], "cuda")
    pixels = torch.empty(2, 64, 64, 1, dtype=torch.uint8, device="cuda")
    z = torch.empty(2, 1, 64, 64, device="cuda")

    def loop() -> None:
        noise(z, seeds)
        step(states, y_in, out, table, 1, Update(3, 3, True, True))
        images(pixels, z, -1, 1)

    loop()
    torch.cuda.synchronize()
    allocated = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == allocated


def test_replays_read_a_changed_table_and_changed_seeds() -> None:
    size = 3 * 32 * 32
    _, out, table = (tensor.cuda() for tensor in inputs(2, size, torch.float16))
    states, y_in = torch.empty(2, size, device="cuda"), torch.empty(size, dtype=torch.float16, device="cuda")
    z, seeds = torch.empty(1, size, device="cuda"), seed_tensor([5], "cuda")

    def loop() -> None:
        noise(z, seeds)
        step(states, y_in, z, table, 2, Update(0, 3, False, True))
        step(states, y_in, out, table, 1, Update(3, 3, True, True))

    loop()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        loop()
    for seed, factor in ((5, 1.0), (2**64 - 1, 0.5)):
        seeds.copy_(seed_tensor([seed]))
        table.mul_(factor)
        for tensor in (states, y_in, z):
            tensor.fill_(torch.nan)
        graph.replay()
        replayed = states.clone(), y_in.clone()
        for tensor in (states, y_in, z):
            tensor.fill_(torch.nan)
        loop()
        assert torch.equal(states, replayed[0])
        assert torch.equal(y_in, replayed[1])
        assert states.isfinite().all()
