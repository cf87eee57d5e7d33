"""The device loop on CPU tensors, through plain torch and the kernels' interpreter: everything but the capture."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pfdiff.engine.backends.abstract import NetworkFiles
from pfdiff.engine.backends.torch_cuda import TorchCuda
from pfdiff.engine.compiler.from_table import program_from_table
from pfdiff.engine.compiler.program import MOST_BUFFERS
from pfdiff.engine.contract.contract import Contract
from pfdiff.engine.runtime.cuda import blocks, capture
from pfdiff.engine.runtime.cuda.batch import BatchKind, CudaBatch, bytes_needed, is_separate
from pfdiff.engine.runtime.draws import Draws
from pfdiff.engine.runtime.inputs import Inputs
from pfdiff.engine.runtime.loop import make_tables
from pfdiff.engine.runtime.noise import noise
from pfdiff.engine.runtime.session import Session
from pfdiff.kernels import eager
from pfdiff.kernels import images as images_op
from pfdiff.kernels import noise as noise_op
from pfdiff.kernels import step as step_op

from ...comparator import assert_as_good_as_plain
from ...small.engine import CONTRACT, SHAPE, Small, program, small
from .test_session import Direct

PLAIN = replace(CONTRACT, conditions=())
SEEDS = (3, 2**64 - 1, 7)
CPU = torch.device("cpu")


def backend(module: Any = small, contract: Contract = PLAIN) -> TorchCuda:
    return TorchCuda(NetworkFiles(Path("none"), contract, module), CPU)


def keys(seeds: tuple[int, ...] = SEEDS) -> np.ndarray:
    return np.array(seeds, np.uint64)


def sampler(
    variant: BatchKind, contract: Contract = PLAIN, module: Any = small, nfe: int = 4, **settings: Any
) -> CudaBatch:
    tables = make_tables(program(nfe, contract, **settings), contract)
    return CudaBatch(backend(module, contract), contract, tables, variant)


# Equal to the reference.
@pytest.mark.parametrize("clip", [None, 1.0], ids=["free", "clip"])
@pytest.mark.parametrize("solver", ["ddim", "pfdiff:k=2,l=1", "dpm-solver:order=3", "pfdiff:k=1,l=1,base=dpm-solver-2"])
def test_the_launches_equal_the_program(solver: str, clip: float | None, ops: str) -> None:
    nfe = 6
    made = sampler(BatchKind(4, True, False), nfe=nfe, solver=solver, clip=clip)
    for _ in range(2):  # the second run starts from what the first one left
        made.load(Inputs(keys(), None, ()))
        made.run()
    z, reference = noise(SEEDS, SHAPE), program(nfe, PLAIN, solver=solver, clip=clip)
    plain, exact = reference.evaluate(small, z), reference.evaluate(small, z.double())
    drawn = made.static.noise.view(4, *SHAPE)[:3]
    if ops == "eager":
        assert torch.equal(drawn, z)
        assert_as_good_as_plain(actual=made.result[:3], plain=plain, exact=exact)
    else:  # the kernel's noise differs from the CPU's in the last bits, which the clip may amplify
        assert torch.allclose(drawn, z, rtol=1e-5, atol=1e-6)
        exact = reference.evaluate(small, drawn.double())
        assert_as_good_as_plain(actual=made.result[:3], plain=reference.evaluate(small, drawn), exact=exact)
    assert torch.equal(made.result[3], made.result[2])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_launches_add_the_output_beside_the_clipped_x0(precision: str, ops: str) -> None:
    contract = replace(PLAIN, precision=precision)
    words: dict[str, Any] = {"solver": "ddim:eps=own", "grid": "trailing", "clip": 0.5}
    made = sampler(BatchKind(4, False, False), contract, nfe=5, **words)
    z = noise(SEEDS, SHAPE)
    for _ in range(2):
        made.load(Inputs(None, z.reshape(3, -1), ()))
        made.run()
    reference = program(5, contract, **words)
    cast = (lambda x, t: small(x.bfloat16(), t).float()) if precision == "bf16" else small
    plain, exact = reference.evaluate(cast, z), reference.evaluate(small, z.double())
    assert_as_good_as_plain(actual=made.result[:3], plain=plain, exact=exact)
    clipped = program(5, contract, **{**words, "solver": "ddim"}).evaluate(small, z.double())
    assert (exact - clipped).abs().max() > 0.1


@pytest.mark.parametrize("seeded", [True, False])
@pytest.mark.parametrize("solver", ["ddpm", "dpm++:3m-sde", "sa", "lcm", "tada:variables=4,order=3"])
def test_the_launches_of_a_stochastic_program(solver: str, seeded: bool, ops: str) -> None:
    """Start and draws from the seeds, or the start given and the draws of the seeds."""
    made, z = sampler(BatchKind(4, seeded, False), nfe=5, solver=solver), noise(SEEDS, SHAPE)
    inputs = Inputs(keys() if seeded else None, None if seeded else z.reshape(3, -1), (), draws=Draws(keys(), None))
    for _ in range(2):
        made.load(inputs)
        made.run()
    exact = program(5, PLAIN, solver=solver).evaluate(small, z.double(), seeds=SEEDS)
    assert torch.allclose(made.result[:3].double(), exact, rtol=1e-4, atol=1e-4)
    assert torch.equal(made.result[3], made.result[2])


def test_the_launches_of_as_many_states_as_a_program_may_have(ops: str) -> None:
    """A table whose rows use every earlier answer, as refined ones do."""
    nfe, random = 14, np.random.default_rng(0)
    rows = np.tril(random.uniform(-0.3, 0.3, (nfe + 1, nfe + 1))) + np.eye(nfe + 1)[0]
    made_of = program_from_table("whole", "linear:1000", range(980, 0, -70), rows.tolist(), "eps", "eps")
    assert made_of.buffers == MOST_BUFFERS == step_op.MAX_BUFFERS
    made, z = CudaBatch(backend(), PLAIN, make_tables(made_of, PLAIN), BatchKind(3, False, False)), noise(SEEDS, SHAPE)
    made.load(Inputs(None, z.reshape(3, -1), ()))
    made.run()
    assert_as_good_as_plain(
        actual=made.result, plain=made_of.evaluate(small, z), exact=made_of.evaluate(small, z.double())
    )


@pytest.mark.parametrize("prediction", ["x0", "v", "edm"])
def test_predictions_and_scaled_inputs(prediction: str, ops: str) -> None:
    schedule = "edm" if prediction == "edm" else "linear:1000"
    contract = replace(PLAIN, prediction=prediction, schedule=schedule)
    tables = make_tables(program(4, contract), contract)
    assert is_separate(tables, torch.float32) == (prediction == "edm")
    made, z = sampler(BatchKind(2, False, False), contract), noise((1, 2), SHAPE)
    made.load(Inputs(None, z.reshape(2, -1), ()))
    made.run()
    reference = program(4, contract)
    exact = reference.evaluate(small, z.double())
    assert_as_good_as_plain(actual=made.result, plain=reference.evaluate(small, z), exact=exact)


def test_the_device_loop_equals_the_cpu_session(ops: str) -> None:
    tables = make_tables(program(6), CONTRACT)
    conditions = (np.array([1, 5, 9]), np.linspace(0, 1, 9, dtype=np.float32).reshape(3, 3, 1))
    z = noise(SEEDS, SHAPE).reshape(3, -1)
    by_session = Session(Direct(), CONTRACT, (4,)).run(tables, Inputs(None, z, conditions))
    made = CudaBatch(backend(contract=CONTRACT), CONTRACT, tables, BatchKind(4, False, False))
    made.load(Inputs(None, z, conditions))
    made.run()
    assert torch.allclose(made.result[:3], by_session, rtol=1e-5, atol=1e-5)


def test_a_half_precision_network_gets_half_precision_inputs(ops: str) -> None:
    contract = replace(CONTRACT, precision="fp16")
    module = Small()
    made = sampler(BatchKind(2, False, False), contract, module)
    assert made.static.y_in is not None
    assert made.static.y_in.dtype == torch.float16
    z = noise((1, 2), SHAPE)
    conditions = [one.values(None, 2) for one in contract.conditions]
    made.load(Inputs(None, z.reshape(2, -1), conditions))
    made.run()

    def network(x: torch.Tensor, t: float) -> torch.Tensor:
        out = torch.tanh(0.7 * x) + 0.001 * t
        return out if x.dtype == torch.float64 else torch.tanh(x.half() * 0.7).float() + 0.001 * t

    exact = program(4, contract).evaluate(network, z.double())
    plain = program(4, contract).evaluate(network, z)
    allowed = 3 * (plain - exact).abs().max()
    assert (made.result - exact).abs().max() <= allowed
    assert module.weight.dtype == torch.float32  # the module given stays as it is


def test_pixels_are_decoded_by_the_last_launch(ops: str) -> None:
    contract = replace(PLAIN, data_range=(-2.0, 1.0))
    made = sampler(BatchKind(3, True, True), contract)
    made.load(Inputs(keys(), None, ()))
    made.run()
    expected = torch.empty_like(made.result)
    eager.images(expected, made.samples, -2.0, 1.0)
    assert made.result.shape == (3, 3, 5, 2)
    assert torch.equal(made.result, expected)


# What a replay may and may not read.
def test_nothing_is_left_from_the_run_before(ops: str) -> None:
    """What the poisoned graph shows on a GPU: a run reads its inputs, its table and its times, and nothing else."""
    made = sampler(BatchKind(3, True, True), replace(PLAIN, prediction="v"), solver="dpm-solver:order=3", nfe=6)
    made.load(Inputs(keys(), None, ()))
    made.run()
    first, pixels = made.samples.clone(), made.result.clone()
    made.static.states.fill_(torch.nan)
    made.static.noise.fill_(torch.nan)
    made.result.fill_(99)
    made.run()
    assert torch.equal(made.samples, first)
    assert torch.equal(made.result, pixels)


def test_conditions_and_table_are_read_again(ops: str) -> None:
    made = sampler(BatchKind(2, True, False), CONTRACT)
    results = []
    for label in (0, 9):
        made.load(Inputs(keys((4, 4)), None, [np.array([label, 0]), np.zeros((2, 3, 1), np.float32)]))
        made.run()
        results.append(made.result.clone())
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[1][0])
    made.static.program.table[:, 4:].mul_(0.5)
    made.run()
    assert not torch.equal(made.result, results[1])


def test_each_evaluation_has_its_own_row_of_times() -> None:
    seen: list[torch.Tensor] = []

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t)
        return small(x, t)

    for rank in (0, 1):
        seen.clear()
        contract = replace(PLAIN, time_rank=rank)
        made = sampler(BatchKind(5, True, False), contract, network)
        made.run()
        times = program(4, contract).network_times
        assert [tuple(t.shape) for t in seen] == [(5,) if rank else ()] * 4
        assert [float(t.reshape(-1)[0]) for t in seen] == times.tolist()
        addresses = [t.data_ptr() for t in seen]
        assert len(set(addresses)) == 4
        assert {(one - made.static.program.times.data_ptr()) % 256 for one in addresses} == {0}


def test_the_loop_never_reads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Python number is made from a tensor between the first and the last launch."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    made = sampler(BatchKind(3, True, True), clip=1.0)
    made.load(Inputs(keys(), None, ()))

    def refuse(*_: object) -> None:
        raise AssertionError("the loop reads a tensor back to the host")

    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    made.launch()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("solver", "clip"),
    [("pfdiff:k=2,l=1", None), ("dpm++:2m", 1.0), ("dpm-solver:order=3", None), ("deis:order=4", None)],
)
def test_every_launch_is_made_without_data(
    solver: str, clip: float | None, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors that have shapes and no data: to read one back, or make a Python number from it, is an error."""
    launched: list[tuple[object, ...]] = []

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *arguments, **constants: launched.append((*grid, *arguments, *constants.values()))

    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    for op in (step_op, noise_op, images_op):
        monkeypatch.setattr(op, "runs_triton", lambda _: True)
        monkeypatch.setitem(vars(op.KERNEL), "compiled", Recorder())
    contract = replace(PLAIN, precision=precision)
    tables = make_tables(program(6, contract, solver=solver, clip=clip), contract)

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) + 0.001 * t.to(x.dtype)[:, None, None, None]

    nowhere = TorchCuda(NetworkFiles(Path("none"), contract, network), torch.device("meta"))
    made = CudaBatch(nowhere, contract, tables, BatchKind(3, True, True))
    made.launch()
    assert len(launched) == 1 + 7 + 1  # noise; the start and six updates; pixels
    for one in launched:
        assert {type(value) for value in one} <= {torch.Tensor, int, float, bool, type(None)}
        assert all(value.is_meta for value in one if isinstance(value, torch.Tensor))
    assert made.static.program.table.is_meta
    with pytest.raises(RuntimeError, match="meta"):
        made.static.program.table[0, 0].item()  # as a launch would have failed


def test_buffers_are_what_was_said_they_would_need() -> None:
    for precision, pixels in (("fp32", False), ("fp16", True)):
        contract = replace(PLAIN, precision=precision)
        variant = BatchKind(6, True, pixels)
        made = sampler(variant, contract, Small() if precision == "fp16" else small)
        held = [made.static.states, made.static.noise, *([made.static.y_in] if made.static.y_in is not None else [])]
        held += [made.static.pixels] if made.static.pixels is not None else []
        size = sum(one.numel() * one.element_size() for one in held)
        out = 6 * 30 * (2 if precision == "fp16" else 4)
        tables = make_tables(program(4, contract), contract)
        assert bytes_needed(tables, contract, variant, made_dtype(precision)) == size + out


def made_dtype(precision: str) -> torch.dtype:
    return {"fp32": torch.float32, "fp16": torch.float16}[precision]


def test_a_wrong_output_shape_is_an_error() -> None:
    made = sampler(BatchKind(2, True, False), module=lambda x, t: x[:1])
    with pytest.raises(ValueError, match=r"the module returned \[1, 2, 3, 5\], expected \[2, 2, 3, 5\]"):
        made.run()


def test_the_constants_are_sane() -> None:
    assert capture.WARM_UP_RUNS >= 2
    assert blocks.ALIGNMENT_BYTES % 256 == 0
