"""Tables that were typed in are the programs that they came from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pfdiff
from pfdiff.engine.compiler.from_table import program_from_table
from pfdiff.engine.errors import InputError

from ...oracle import Mixture


@pytest.mark.parametrize(
    ("solver", "schedule", "prediction", "basis", "clip"),
    [
        ("pfdiff:k=2,l=1", "linear:1000", "v", "eps", None),
        ("unipc:order=2", "edm", "edm", "x0", None),
        ("ipndm:order=3", "flow:shift=3", "flow", "v", None),
        ("dpm++:2m", "vp", "eps", "x0", 1.0),
    ],
)
def test_a_table_typed_in_is_its_program(solver, schedule, prediction, basis, clip):
    program = pfdiff.compile(solver, schedule, 5, "trailing", basis, prediction, clip, t_start=None)
    rows = [row[: n + 1].tolist() for n, row in enumerate(program.table)]
    typed = program_from_table("mine", schedule, program.times.tolist(), rows, program.basis, prediction, clip)
    network, noise = Mixture.of(schedule, 3).network(prediction), np.random.default_rng(0).standard_normal((4, 6))
    np.testing.assert_allclose(typed.evaluate(network, noise), program.evaluate(network, noise), atol=1e-9)
    assert (typed.solver, typed.buffers) == ("mine", program.buffers)
    assert pfdiff.Program.from_json(typed.to_json()).digest == typed.digest


@pytest.mark.parametrize(("nfe", "states"), [(13, 7), (14, 8), (15, 8)])
def test_a_table_that_uses_the_whole_past_may_hand_on_eight_states(nfe, states):
    """Every answer in every later row, as a refined table has them: the most states of a table of that size."""
    rows = np.tril(np.random.default_rng(nfe).standard_normal((nfe + 1, nfe + 1)))
    times = np.linspace(1, 0.1, nfe).tolist()
    program = program_from_table("mine", "vp", times, rows.tolist(), "eps", "eps")
    assert program.buffers == states
    assert pfdiff.Program.from_json(program.to_json()).digest == program.digest


def test_a_table_that_needs_more_states_is_refused():
    rows = np.tril(np.random.default_rng(0).standard_normal((17, 17))).tolist()
    with pytest.raises(InputError, match=r"the rows hand on 9 states .*, expected at most 8; "):
        program_from_table("mine", "vp", np.linspace(1, 0.1, 16).tolist(), rows, "eps", "eps")


GOOD: dict[str, Any] = {"times": [80.0, 1.0], "rows": [[80.0], [1.0, -79.0], [0.0, 0.0, 1.0]], "basis": "eps"}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rows": [[80.0], [1.0, -79.0]]}, "2 rows for 2 times, expected 3"),
        ({"rows": [[80.0, 1.0, 0.0], [1.0, -79.0, 0], [0, 0, 1]]}, "row 0 uses an answer that is not there yet"),
        ({"rows": [[80.0], [1.0], [0.0, 0.0, 1.0]]}, "row 1 has 1 numbers, expected 2"),
        ({"rows": [[0.0], [1.0, -79.0], [0.0, 0.0, 1.0]]}, "first input is nothing"),
        ({"times": [80.0, 0.0001]}, "0.0001"),
        ({"times": []}, "0 times, expected 1"),
        ({"basis": "w"}, "basis"),
    ],
)
def test_what_does_not_fit_is_refused(change, match):
    given = {**GOOD, **change}
    with pytest.raises(InputError, match=match):
        program_from_table("mine", "edm", given["times"], given["rows"], given["basis"], "edm")
