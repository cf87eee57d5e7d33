"""Programs that differ in numbers alone share a captured graph: every start from a picture that of its NFE."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pfdiff.engine.compiler.part import last_part
from pfdiff.engine.errors import BackendError
from pfdiff.engine.runtime.cuda import loop as cuda_loop
from pfdiff.engine.runtime.cuda.coefficients import updates_of
from pfdiff.engine.runtime.cuda.loop import CudaLoop
from pfdiff.engine.runtime.inputs import Inputs
from pfdiff.engine.runtime.loop import Tables, make_tables
from pfdiff.engine.runtime.pictures.masked import Masked

from ...small.engine import program
from .test_cuda_loop import PLAIN, Notes, Operations, cuda, loop_of

__all__ = ["cuda"]
STRENGTHS = (0.25, 0.5, 0.8, 1.0)
SOLVERS = ("ddim", "pfdiff:k=2,l=1", "dpm++:2m", "unipc:order=3", "deis:order=3", "ipndm", "heun", "ddpm", "sa")
ELEMENTS = int(np.prod(PLAIN.shape))


def part(strength: float, nfe: int = 6, **settings: Any) -> Tables:
    return make_tables(last_part(program(nfe, PLAIN, **settings), strength), PLAIN, mixed=True)


def start(masked: bool = False) -> Inputs:
    """Two samples that start from given values."""
    generator = torch.Generator().manual_seed(3)
    noise, picture = (torch.randn(2, ELEMENTS, generator=generator) for _ in range(2))
    mask = torch.randint(0, 2, (2, ELEMENTS), generator=generator, dtype=torch.uint8)
    return Inputs(None, noise, (), masked=Masked(picture, mask) if masked else None)


def run(loop: CudaLoop, tables: Tables, inputs: Inputs) -> torch.Tensor:
    return loop.run(tables, [(2, 2)], inputs, pixels=False)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
def test_starts_differ_in_numbers_alone(solver: str, separate: bool, clip: float | None) -> None:
    whole = make_tables(program(6, PLAIN, solver=solver, clip=clip), PLAIN)
    starts = [part(strength, solver=solver, clip=clip) for strength in STRENGTHS]
    found = {updates_of(one, separate=separate, masked=False) for one in (whole, *starts)}
    assert len(found) == 1
    assert len({(one.buffers, one.draws) for one in (whole, *starts)}) == 1
    assert len({one.program.digest for one in starts}) == len(STRENGTHS)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("solver", ["pfdiff:k=2,l=1", "dpm++:2m"])
def test_one_graph_for_all_starts(solver: str, masked: bool, cuda: Notes) -> None:
    """Each as from a loop of its own, bit for bit, in any order."""
    loop, inputs = loop_of(cuda), start(masked)
    tables = {strength: part(strength, solver=solver) for strength in STRENGTHS}
    alone = {strength: run(loop_of(cuda), one, inputs) for strength, one in tables.items()}
    assert cuda.count("record in pool") == len(STRENGTHS)
    cuda.clear()
    for strength in (0.5, 0.25, 1.0, 0.5, 0.8, 0.8, 0.25, 1.0):
        assert torch.equal(run(loop, tables[strength], inputs), alone[strength])
    assert cuda.count("record in pool") == 1
    assert len({one.numpy().tobytes() for one in alone.values()}) == len(STRENGTHS)


def test_a_start_shares_the_graph_of_plain_noise(cuda: Notes) -> None:
    """Seeds have a second one, whose first kernel makes the noise; only a mask has a third."""
    loop, inputs, whole = loop_of(cuda), start(), make_tables(program(6, PLAIN), PLAIN)
    plain = run(loop, whole, inputs)
    started = run(loop, part(0.5), inputs)
    assert cuda.count("record in pool") == 1
    assert torch.equal(run(loop, whole, inputs), plain)
    assert not torch.equal(started, plain)
    run(loop, whole, Inputs(np.array([3, 4], np.uint64), None, ()))
    assert cuda.count("record in pool") == 2
    for tables in (whole, part(0.5), part(0.25)):
        run(loop, tables, start(masked=True))
    assert cuda.count("record in pool") == 3
    run(loop, part(0.8), start(masked=True))
    run(loop, whole, inputs)
    run(loop, whole, Inputs(np.array([5, 6], np.uint64), None, ()))
    assert cuda.count("record in pool") == 3


def test_another_start_costs_one_copy_and_the_same_one_none(cuda: Notes) -> None:
    loop, inputs, one, two = loop_of(cuda), start(), part(0.5), part(0.8)
    run(loop, one, inputs)
    with Operations() as alone:
        run(loop, one, inputs)
    run(loop, two, inputs)
    for tables, copies in ((one, 1), (one, 0), (two, 1), (two, 0)):
        cuda.clear()
        with Operations() as asked:
            run(loop, tables, inputs)
        assert cuda == ["event", "wait", "replay", "event", "wait"]
        assert len(asked.seen) == len(alone.seen) + copies
        assert asked.seen.count("aten::copy_") == alone.seen.count("aten::copy_") + copies


def test_what_launches_otherwise_has_a_graph_of_its_own(cuda: Notes) -> None:
    loop, inputs = loop_of(cuda), start()
    run(loop, part(0.5), inputs)
    for other in (
        part(0.5, nfe=4),
        part(0.5, solver="dpm++:2m"),
        part(0.5, clip=1.0),
        make_tables(last_part(program(6, PLAIN), 0.5, whole=True), PLAIN, mixed=True),
    ):
        run(loop, other, inputs)
    assert cuda.count("record in pool") == 5
    run(loop, part(0.5), start(masked=True))
    assert cuda.count("record in pool") == 6


def broken(tables: Tables) -> Tables:
    """The same with weights that leave float32."""
    return replace(tables, program=replace(tables.program, w=np.where(tables.program.w != 0, 3e38, 0.0)))


def test_the_first_samples_of_every_start_are_looked_at(cuda: Notes) -> None:
    loop, inputs, one = loop_of(cuda), start(), part(0.5)
    first = run(loop, one, inputs)
    with pytest.raises(BackendError, match="the samples are not finite"):
        run(loop, broken(one), inputs)
    assert cuda.count("record in pool") == 1  # it was tried on the graph that is there
    assert torch.equal(run(loop, one, inputs), first)


def test_programs_are_forgotten_and_come_back(cuda: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_loop, "LARGEST_SHARE", 2)
    loop, inputs = loop_of(cuda), start()
    tables = [part(strength) for strength in STRENGTHS]
    first = [run(loop, one, inputs) for one in tables]
    assert len(loop._held) == 2
    for n in (0, 3, 1, 2, 2, 0):
        assert torch.equal(run(loop, tables[n], inputs), first[n])
    (batch,) = set(loop._held.values())
    assert len(batch._others) <= 3
    assert cuda.count("record in pool") == 1


def test_graphs_are_counted_not_programs(cuda: Notes) -> None:
    loop, inputs = loop_of(cuda, largest=2), start()
    for strength in STRENGTHS:
        run(loop, part(strength), inputs)
    run(loop, part(0.5, nfe=4), inputs)
    assert len(loop._held) == len(STRENGTHS) + 1
    run(loop, part(0.5, nfe=8), inputs)  # the graph of all four makes room
    assert [key[0].nfe for key in loop._held] == [4, 8]
