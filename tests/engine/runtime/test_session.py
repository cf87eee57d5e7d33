"""The loop: equal to the program's own reference, a sample depends on its seed alone, failures say where."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
import torch

from pfdiff.engine.backends.abstract import Backend, Buffers, Evaluate
from pfdiff.engine.contract.condition import Condition
from pfdiff.engine.contract.contract import Contract
from pfdiff.engine.errors import BackendError, InputError
from pfdiff.engine.runtime import cpu_loop as host_loop
from pfdiff.engine.runtime.inputs import Inputs
from pfdiff.engine.runtime.loop import make_tables
from pfdiff.engine.runtime.noise import noise
from pfdiff.engine.runtime.session import Session, plan_chunks
from pfdiff.kernels import eager

from ...comparator import assert_as_good_as_plain
from ...small.engine import CONTRACT, SHAPE, program, small

pytestmark = pytest.mark.usefixtures("walk")
PLAIN = replace(CONTRACT, conditions=())
Network = Callable[..., torch.Tensor]


@final
class Direct(Backend):
    """A backend that calls a function of torch tensors and counts its evaluations."""

    def __init__(self, network: Network = small, dtype: torch.dtype = torch.float32) -> None:
        self.name, self.description, self.threads = "direct", "direct", None
        self.device, self.dtype = torch.device("cpu"), dtype
        self.network = network
        self.calls: list[int] = []
        self.bound: list[int] = []
        self.closed = False

    def bind(self, sets: Sequence[Buffers]) -> list[Evaluate]:
        self.bound += [len(buffers.x) for buffers in sets]
        return [self._bound(buffers) for buffers in sets]

    def _bound(self, buffers: Buffers) -> Evaluate:
        def evaluate() -> torch.Tensor:
            self.calls.append(len(buffers.x))
            return buffers.out.copy_(self.network(buffers.x, buffers.t, *buffers.conditions))

        return evaluate

    def close(self) -> None:
        self.closed = True


def run(
    backend: Backend,
    nfe: int,
    seeds: Any,
    *,
    contract: Contract = PLAIN,
    buckets: tuple[int, ...] = (1, 8),
    conditions: tuple[np.ndarray, ...] = (),
    **settings: Any,
) -> torch.Tensor:
    keys = np.array(list(seeds), np.uint64)
    tables = make_tables(program(nfe, contract, **settings), contract)
    return Session(backend, contract, buckets).run(tables, Inputs(keys, None, conditions))


@pytest.mark.skipif(host_loop.walk_compiled is None, reason="engine/runtime/_cpu.cpp was not compiled")
@pytest.mark.parametrize("count", [1, 5, 8])
def test_both_ways_give_the_same_bits(
    count: int, monkeypatch: pytest.MonkeyPatch, only_python: Callable[[], None]
) -> None:
    monkeypatch.undo()
    compiled = run(Direct(), 7, range(count))
    only_python()
    assert torch.equal(compiled, run(Direct(), 7, range(count)))


# Equal to the reference.
@pytest.mark.parametrize(
    "solver", ["ddim", "dpm++:2m", "dpm-solver:order=3", "pfdiff:k=3,l=2", "pfdiff:k=1,l=1,base=dpm-solver-2"]
)
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_loop_equals_the_program(solver: str, clip: float | None, prediction: str) -> None:
    contract = replace(PLAIN, prediction=prediction)
    x = run(Direct(), 6, range(30), contract=contract, solver=solver, clip=clip)
    reference, z = program(6, contract, solver=solver, clip=clip), noise(range(30), SHAPE)
    plain, exact = reference.evaluate(small, z), reference.evaluate(small, z.double())
    assert_as_good_as_plain(actual=x, plain=plain, exact=exact)


def test_edm_networks_get_a_scaled_input() -> None:
    contract = replace(PLAIN, schedule="edm", prediction="edm")
    x = run(Direct(), 5, range(3), contract=contract, grid="karras")
    expected = program(5, contract, grid="karras").evaluate(small, noise(range(3), SHAPE).double())
    assert (x - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_of_another_dtype_has_buffers_of_its_own(dtype: torch.dtype) -> None:
    def cast(x: torch.Tensor, t: Any) -> torch.Tensor:
        assert x.dtype == dtype
        return small(x.float(), t).to(dtype)

    x = run(Direct(cast, dtype), 4, range(2))
    expected = program(4, PLAIN).evaluate(
        lambda x, t: small(x.to(dtype).float(), t).to(dtype).float(), noise(range(2), SHAPE)
    )
    assert (x - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_state_wider_than_one_product_is_cut() -> None:
    contract = replace(PLAIN, shape=(3, 251, 251))  # 189003 elements, three blocks for two states
    x = run(Direct(), 4, [5], contract=contract)
    expected = program(4, contract).evaluate(small, noise([5], (3, 251, 251)))
    assert (x - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("time_dtype", "rank", "scale"), [("int64", 1, 1.0), ("float32", 0, 0.001), ("float32", 1, 2.0)]
)
def test_times_are_fed_as_the_contract_says(time_dtype: str, rank: int, scale: float) -> None:
    contract = replace(PLAIN, time_dtype=time_dtype, time_rank=rank, time_scale=scale)
    seen: list[torch.Tensor] = []

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t.clone())
        return small(x, t.float())

    run(Direct(network), 4, [0, 1], contract=contract, buckets=(2,))
    assert all(t.dtype == getattr(torch, time_dtype) and t.ndim == rank for t in seen)
    expected = program(4, contract).times * scale
    np.testing.assert_allclose([t.reshape(-1)[0].item() for t in seen], expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "int32", "bool"])
def test_conditions_reach_the_network_in_their_dtype_and_are_padded(dtype: str) -> None:
    contract = replace(CONTRACT, conditions=(Condition("c", dtype, shape=(2,)),))
    values = np.array([[1, 0], [0, 1]], "float32" if "float" in dtype else dtype)
    seen: list[torch.Tensor] = []

    def network(x: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        seen.append(c.clone())
        return small(x, t)

    run(Direct(network), 4, [0, 1], contract=contract, buckets=(3,), conditions=(values,))
    assert all(c.dtype == getattr(torch, dtype) for c in seen)
    assert [c.float().tolist() for c in seen] == 4 * [[[1, 0], [0, 1], [0, 1]]]


# One seed, one sample.
def test_a_sample_depends_on_its_seed_alone() -> None:
    alone = run(Direct(), 6, [11])
    of_seven = run(Direct(), 6, range(5, 12))
    of_64 = run(Direct(), 6, range(64), buckets=(64,))
    padded = run(Direct(), 6, [11], buckets=(64,))
    for other in (of_seven[6:], of_64[11:12], padded):
        assert (other - alone).abs().max() <= 1e-5


def test_noise_is_the_same_bit_for_bit_and_that_of_the_kernels() -> None:
    seeds = [0, 7, 2**32, 2**63 + 5, 2**64 - 1]
    for shape in ((1,), (7,), (2, 3, 5), (2, 4099), (3, 64, 64)):
        z = noise(seeds, shape)
        for row, seed in enumerate(seeds):
            assert torch.equal(noise([seed], shape)[0], z[row])
        twin = torch.empty(5, *shape)
        eager.noise(twin, torch.from_numpy(np.array(seeds, np.uint64).view(np.int64)))
        # Two libraries' float64 logarithms and cosines may differ in the last bit: one float32 rounding at most.
        torch.testing.assert_close(z, twin, rtol=2**-23, atol=2**-30)


def test_noise_is_normal() -> None:
    z = noise(range(50), (100, 100)).double()
    assert abs(z.mean()) < 5 / 707
    assert abs(z.var() - 1) < 0.01
    assert abs((z**4).mean() - 3) < 0.05
    assert abs((z[0] * z[1]).mean()) < 0.05


@pytest.mark.parametrize("seeds", [3, "0-3", [1.5], [-1], [2**64], [True], [None], 7.0, None])
def test_bad_seeds_are_refused(seeds: Any) -> None:
    with pytest.raises(InputError, match="seed"):
        noise(seeds, (2,))


@pytest.mark.parametrize("shape", [(0,), (-1, 2), (1.5,), "ab", 4])
def test_bad_shapes_are_refused(shape: Any) -> None:
    with pytest.raises(InputError, match="shape"):
        noise([1], shape)


# Chunks and padding.
@pytest.mark.parametrize(
    ("count", "buckets", "expected"),
    [
        (0, (1, 8), []),
        (1, (1, 8), [(1, 1)]),
        (7, (1, 8), [(7, 8)]),
        (3, (1, 8), [(1, 1)] * 3),
        (9, (1, 8), [(8, 8), (1, 1)]),
        (20, (1, 8), [(8, 8), (8, 8), (4, 8)]),
        (3, (8,), [(3, 8)]),
        (70, (64,), [(64, 64), (6, 64)]),
        (5, (2, 4, 16), [(4, 4), (1, 2)]),
    ],
)
def test_chunks(count: int, buckets: tuple[int, ...], expected: list[tuple[int, int]]) -> None:
    assert plan_chunks(count, buckets) == expected


def test_padding_is_valid_data() -> None:
    seen: list[torch.Tensor] = []

    def network(x: torch.Tensor, t: Any, label: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        seen.append(torch.cat([x.flatten(1), label[:, None].float(), shift.flatten(1)], dim=1).clone())
        return small(x, t, label, shift)

    shifts = np.arange(9, dtype=np.float32).reshape(3, 3, 1)
    run(Direct(network), 4, range(3), contract=CONTRACT, buckets=(5,), conditions=(np.array([4, 5, 6]), shifts))
    for rows in seen:
        assert torch.equal(rows[3], rows[2])
        assert torch.equal(rows[4], rows[2])
        assert not torch.equal(rows[1], rows[2])


def test_buckets_are_made_once_and_evaluate_nfe_times() -> None:
    backend = Direct()
    session = Session(backend, PLAIN, (1, 4))
    tables = make_tables(program(4, PLAIN), PLAIN)
    for _ in range(2):
        session.run(tables, Inputs(np.arange(5, dtype=np.uint64), None, ()))
    assert backend.calls == ([4] * 4 + [1] * 4) * 2
    assert backend.bound == [4, 4, 1, 1]


# Failures.
def failing_at(evaluation: int, value: float) -> Network:
    count = [0]

    def network(x: torch.Tensor, t: Any) -> torch.Tensor:
        count[0] += 1
        out = small(x, t)
        if count[0] == evaluation:
            out[0, 1, 2, 3] = value
        return out

    return network


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_an_output_that_is_not_finite_names_evaluation_and_time(value: float, clip: float | None) -> None:
    time = program(4, PLAIN).times[2]
    with pytest.raises(BackendError, match=rf"not finite at evaluation 3 of 4, time {time:g};"):
        run(Direct(failing_at(3, value)), 4, [0], clip=clip)


def test_a_large_sum_alone_is_no_failure() -> None:
    def network(x: torch.Tensor, t: Any) -> torch.Tensor:
        return torch.full_like(x, 3e38)

    x = run(Direct(network), 1, [0], solver="ddim", clip=1.0)
    assert torch.isfinite(x).all()


def test_what_the_backend_raises_becomes_one_line() -> None:
    def network(x: torch.Tensor, t: Any) -> torch.Tensor:
        raise RuntimeError("\n out of memory \n at line 7")

    with pytest.raises(BackendError, match=r"^evaluation 1 of 4 failed at time 999: out of memory$"):
        run(Direct(network), 4, [0])


def test_a_network_of_whole_times_refuses_fractions() -> None:
    contract = replace(PLAIN, time_dtype="int64", schedule="vp")
    with pytest.raises(InputError, match="no integer"):
        make_tables(program(4, contract), contract)


# Threads and closing.
def test_concurrent_use_is_refused_and_harms_nothing() -> None:
    inside, leave = threading.Event(), threading.Event()

    def slow(x: torch.Tensor, t: Any) -> torch.Tensor:
        inside.set()
        assert leave.wait(30)
        return small(x, t)

    session = Session(Direct(slow), PLAIN, (1,))
    tables, keys = make_tables(program(4, PLAIN), PLAIN), np.array([3], np.uint64)
    results: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: results.append(session.run(tables, Inputs(keys, None, ()))))
    thread.start()
    assert inside.wait(30)
    for call in (lambda: session.run(tables, Inputs(keys, None, ())), session.close):
        with pytest.raises(BackendError, match="sampling in another thread"):
            call()
    leave.set()
    thread.join()
    assert torch.equal(results[0], run(Direct(), 4, [3]))


def test_an_interrupted_call_leaves_the_session_usable() -> None:
    interrupts = [KeyboardInterrupt()]

    def network(x: torch.Tensor, t: Any) -> torch.Tensor:
        if interrupts:
            raise interrupts.pop()
        return small(x, t)

    session = Session(Direct(network), PLAIN, (1,))
    tables, keys = make_tables(program(4, PLAIN), PLAIN), np.array([3], np.uint64)
    with pytest.raises(KeyboardInterrupt):
        session.run(tables, Inputs(keys, None, ()))
    assert torch.equal(session.run(tables, Inputs(keys, None, ())), run(Direct(), 4, [3]))


def test_after_close_nothing_runs(tmp_path: Path) -> None:
    backend = Direct()
    session = Session(backend, PLAIN, (1,))
    session.close()
    session.close()
    assert backend.closed
    with pytest.raises(BackendError, match="is closed"):
        session.run(make_tables(program(4, PLAIN), PLAIN), Inputs(np.array([3], np.uint64), None, ()))
