"""kernels/step.py and table.py: the interpreted kernel and its plain twin against float64, and the masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import pfdiff
from pfdiff.kernels import eager
from pfdiff.kernels.step import BLOCK, MAX_BUFFERS, step
from pfdiff.kernels.table import Update, coefficients, row_length, updates

from ..comparator import assert_as_good_as_plain

pytest.importorskip("triton", reason="the kernels need Triton")

SIZES = [1, 997, BLOCK - 1, BLOCK, BLOCK + 1]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CLIP = 0.75


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def plain_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")


@dataclass
class Case:
    """Random inputs of one update; the second of three table rows is used."""

    states: torch.Tensor
    out: torch.Tensor
    table: torch.Tensor
    y_in: torch.Tensor | None
    update: Update

    def run(self, op, *, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor | None]:
        states = self.states.to(dtype, copy=True)
        if self.y_in is None:
            y_in = None
        else:
            y_in = torch.full_like(self.y_in, 7.0, dtype=dtype if dtype == torch.float64 else self.y_in.dtype)
        op(
            states,
            y_in,
            self.out.to(dtype) if dtype == torch.float64 else self.out,
            self.table.to(dtype),
            1,
            self.update,
        )
        return states, y_in


def case(buffers: int, size: int, dtype: torch.dtype, update: Update, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(3, row_length(buffers), generator=generator)
    table[:, 2] = CLIP
    return Case(
        states=torch.randn(buffers, size, generator=generator),
        out=torch.randn(size, generator=generator).to(dtype),
        table=table,
        y_in=torch.empty(size, dtype=dtype) if update.separate else None,
        update=update,
    )


def plain(states, y_in, out, table, row, update) -> None:
    """The update as plain torch would write it in the states' dtype, without regard to the kernel's order."""
    buffers = len(states)
    numbers = table[row]
    w, W = numbers[4 : 4 + buffers], numbers[4 + buffers :].view(buffers, buffers)
    read = [i for i in range(buffers) if update.reads >> i & 1]
    z = out.to(states.dtype)
    if update.clip:
        p = numbers[0] if 0 in read else 0
        z = (p * states[0] + numbers[1] * z).clamp(-float(numbers[2]), float(numbers[2]))
    after = (W[:, read, None] * states[read]).sum(1) + w[:, None] * z
    for j in range(buffers):
        if update.writes >> j & 1:
            states[j] = after[j]
    if y_in is not None:
        y_in.copy_(numbers[3] * after[0])


def assert_matches(cases: list[Case]) -> None:
    """The launched op is as good as `plain` over all cases together, and equal bit for bit to the eager twin."""
    runs = [(c.run(step), c.run(eager.step), c.run(plain), c.run(plain, dtype=torch.float64)) for c in cases]
    for (states, y_in), (twin_states, twin_y), _, _ in runs:
        assert torch.equal(states, twin_states)
        assert y_in is None if twin_y is None else y_in is not None and torch.equal(y_in, twin_y)
    for which in (0, 1):  # states, y_in
        chosen = [
            [tensor.flatten() for run in runs_of_case if (tensor := run[which]) is not None] for runs_of_case in runs
        ]
        columns = [column for column in chosen if column]
        if columns:
            actual, _, by_plain, exact = (torch.cat(column) for column in zip(*columns, strict=True))
            assert_as_good_as_plain(actual=actual, plain=by_plain, exact=exact)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("clip", [False, True], ids=["free", "clip"])
@pytest.mark.parametrize("buffers", range(1, MAX_BUFFERS + 1))
def test_interpreted_kernel_matches_float64(buffers: int, clip: bool, dtype: torch.dtype) -> None:
    everything = (1 << buffers) - 1
    shapes = [(size, separate) for size in SIZES for separate in (False, True)]
    assert_matches([case(buffers, n, dtype, Update(everything, everything, clip, apart), n) for n, apart in shapes])


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("separate", [False, True], ids=["shared", "separate"])
@pytest.mark.parametrize("clip", [False, True], ids=["free", "clip"])
def test_every_mask_of_two_states(clip: bool, separate: bool) -> None:
    masks = [(reads, writes) for reads in range(4) for writes in range(4)]
    assert_matches([case(2, 97, torch.float16, Update(*mask, clip, separate), seed) for seed, mask in enumerate(masks)])


@pytest.mark.usefixtures("plain_twin")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_gpu_the_plain_twin_runs(dtype: torch.dtype) -> None:
    assert_matches([case(2, 997, dtype, Update(3, 3, True, True))])


@pytest.mark.usefixtures("interpreter")
def test_states_outside_the_masks_are_neither_read_nor_written() -> None:
    given = case(3, 997, torch.float32, Update(reads=0b010, writes=0b001))
    given.states[0], given.states[2] = torch.nan, torch.nan
    states, _ = given.run(step)
    assert states[0].isfinite().all()
    assert torch.equal(states[1], given.states[1])
    assert states[2].isnan().all()


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_stay_visible(dtype: torch.dtype) -> None:
    given = case(1, 8, dtype, Update(1, 1, True, True))
    given.out[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    states, y_in = given.run(step)
    twin_states, twin_y = given.run(eager.step)
    assert y_in is not None
    assert twin_y is not None
    assert torch.equal(states.nan_to_num(99.0), twin_states.nan_to_num(99.0))
    assert torch.equal(y_in.nan_to_num(99.0), twin_y.nan_to_num(99.0))
    assert states[0, 0].isnan()
    assert states[0, 1:].isfinite().all()  # clipped


@pytest.mark.usefixtures("interpreter")
def test_nothing_beyond_the_last_element_is_touched() -> None:
    memory = torch.full((2 * 997 + 64,), 5.0)
    states = memory[: 2 * 997].view(2, 997)
    given = case(2, 997, torch.float32, Update(3, 3))
    step(states, None, given.out, given.table, 0, given.update)
    assert (memory[2 * 997 :] == 5.0).all()


PFDIFF = "pfdiff:k=2,l=1"
SOLVERS = ["ddim", "dpm-solver:order=2", "dpm++:2m", "pfdiff:k=3,l=2", "pfdiff:k=1,l=1,base=dpm++2s"]


def network(x, t):
    return 0.8 * x / (1 + x * x) ** 0.5 + 0.001 * t


def half_network(x, t):
    """The network with float16 input and output, as plain code would call it."""
    return network(x.half().float(), t).half().float()


def sample(program: pfdiff.Program, network, noise: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The session's loop in miniature: start row, then network and step in turn; NaN wherever nothing was written."""
    separate = dtype != torch.float32 or bool((program.c_in != 1).any())
    arrays = {name: getattr(program, name) for name in ("init", "p", "q", "W", "w", "c_in")}
    table = torch.from_numpy(coefficients(**arrays, clip=program.clip))
    rows = updates(p=program.p, W=program.W, w=program.w, clip=program.clip is not None, separate=separate)
    states = torch.full((program.buffers, noise.numel()), torch.nan)
    y_in = torch.full((noise.numel(),), torch.nan, dtype=dtype) if separate else None
    step(states, y_in, noise.flatten(), table, program.nfe, rows[-1])
    for n in range(program.nfe):
        x_t = states[0] if y_in is None else y_in
        out = network(x_t.float(), program.network_times[n]).to(dtype)
        step(states, y_in if rows[n].separate else None, out, table, n, rows[n])
    return states[0].view_as(noise)


def assert_sampler_matches(program: pfdiff.Program, dtype: torch.dtype) -> None:
    noise = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
    by_plain = program.evaluate(network if dtype == torch.float32 else half_network, noise)
    exact = program.evaluate(network, noise.double())
    assert_as_good_as_plain(actual=sample(program, network, noise, dtype), plain=by_plain, exact=exact)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("basis", ["eps", "x0", "v"])
def test_whole_sampler_equals_the_program(prediction: str, basis: str, clip: float | None) -> None:
    program = pfdiff.compile(
        PFDIFF, "linear:1000", 4, grid="trailing", basis=basis, prediction=prediction, clip=clip, t_start=900
    )
    assert_sampler_matches(program, torch.float32)
    assert_sampler_matches(program, torch.float16)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("solver", SOLVERS)
def test_whole_sampler_of_the_other_solvers(solver: str) -> None:
    program = pfdiff.compile(solver, "linear:1000", 4, grid="trailing", prediction="v", clip=1.0)
    assert_sampler_matches(program, torch.float32)


@pytest.mark.usefixtures("interpreter")
def test_scaled_network_input_of_edm() -> None:
    assert_sampler_matches(pfdiff.compile(PFDIFF, "edm", 4, grid="karras", prediction="edm"), torch.float32)


def test_pfdiff_reads_two_and_writes_two_states_sized_tensors() -> None:
    program = pfdiff.compile("pfdiff:k=2,l=1", "cosine:300", 8)
    for separate, expected in ((False, Update(0b10, 0b11)), (True, Update(0b10, 0b10, separate=True))):
        rows = updates(p=program.p, W=program.W, w=program.w, clip=False, separate=separate)
        assert set(rows[1:-2]) == {expected}  # anchor and `out` in; springboard (or y_in) and anchor out
        assert rows[-2] == Update(0b10, 0b01)  # at last only the sample
        assert rows[-1].reads == 0


def test_coefficient_rows_follow_the_layout() -> None:
    W, w = np.arange(8.0).reshape(2, 2, 2), np.arange(4.0).reshape(2, 2) + 20
    rows = coefficients(init=[1, 0.5], p=[2, 3], q=[4, 5], W=W, w=w, c_in=[0.25, 0.75], clip=1.5)
    assert rows.dtype == np.float32
    assert rows.tolist() == [
        [2, 4, 1.5, 0.75, 20, 21, 0, 1, 2, 3],
        [3, 5, 1.5, 1, 22, 23, 4, 5, 6, 7],
        [0, 0, 0, 0.25, 1, 0.5, 0, 0, 0, 0],
    ]


def test_an_unchanged_state_is_not_written() -> None:
    W = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.0, 1.0]]])
    rows = updates(p=[1, 1], W=W, w=[[1.0, 0.0], [1.0, 0.0]], clip=False, separate=False)
    assert rows == (Update(0b01, 0b01), Update(0b11, 0b01), Update(0b00, 0b11))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": torch.zeros(9, 8)}, "B in 1..8"),
        ({"states": torch.zeros(2, 8, dtype=torch.float64)}, "must be float32"),
        ({"table": torch.zeros(1, 9)}, r"must be \[rows, 10\]"),
        ({"row": 1}, "row 1 is outside"),
        ({"update": Update(4, 1)}, "beyond 2"),
        ({"update": Update(1, 1, separate=True)}, "y_in must be given"),
        ({"out": torch.zeros(7)}, "8 elements"),
        ({"out": torch.zeros(8, dtype=torch.int32)}, "expected float16"),
        ({"out": torch.zeros(8, device="meta")}, "one device"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str) -> None:
    arguments = {
        "states": torch.zeros(2, 8),
        "y_in": None,
        "out": torch.zeros(8),
        "table": torch.zeros(1, 10),
        "row": 0,
        "update": Update(1, 1),
    }
    with pytest.raises(ValueError, match=message):
        step(**(arguments | change))
