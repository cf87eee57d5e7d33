"""`_cpu.cpp`'s walk through the evaluations, against float64; memory that does not fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pfdiff.engine.runtime import cpu_loop as host_loop

walk = host_loop.walk_compiled
pytestmark = pytest.mark.skipif(walk is None, reason="_cpu.cpp was not compiled when pfdiff was installed")
NFE, STATES, ELEMENTS = 3, 2, 1030


def arguments(*, dtype: str = "float32", batch: tuple[int, ...] = (4,), wanted: int = ELEMENTS) -> dict[str, Any]:
    """Everything that a walk takes, by name; an evaluation writes sin(state 0 + time) into its matrix' last row."""
    generator = np.random.default_rng(7)
    matrices = tuple(np.full((STATES + 1, ELEMENTS + 10), np.nan, np.float32)[:, :ELEMENTS] for _ in range(2))
    matrices[0][:-1] = generator.standard_normal((STATES, ELEMENTS))
    time = np.zeros(batch, dtype)

    def evaluation(matrix: np.ndarray) -> Callable[[], None]:
        return lambda: np.copyto(matrix[-1], np.sin(matrix[0] + time.flat[-1]), casting="same_kind")

    return {
        "evaluations": tuple(evaluation(matrix) for matrix in matrices),
        "matrices": matrices,
        "time": time,
        "times": np.array([9, 4, 1], dtype),
        "update": generator.standard_normal((NFE, STATES, STATES + 1)).astype(np.float32),
        "result": np.zeros((1, wanted), np.float32),
        "reached": np.full(1, -1),
    }


def exact(given: dict[str, Any]) -> np.ndarray:
    """The result in float64, by plain loops."""
    states = given["matrices"][0][:-1].astype(np.float64)
    for t, update in zip(given["times"], given["update"].astype(np.float64), strict=True):
        out = np.sin(states[0] + float(t))
        states = update @ np.vstack([states, out])
    return states[0]


@pytest.mark.parametrize("dtype", ["float32", "int64"])
@pytest.mark.parametrize("batch", [(), (1,), (4,)])
@pytest.mark.parametrize("wanted", [ELEMENTS, 7])
def test_its_result_is_that_of_float64(dtype: str, batch: tuple[int, ...], wanted: int) -> None:
    assert walk is not None
    given = arguments(dtype=dtype, batch=batch, wanted=wanted)
    expected = exact(given)[:wanted]
    assert np.abs(expected).max() > 1
    assert walk(*given.values()) is True
    np.testing.assert_allclose(given["result"][0], expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(given["time"], np.broadcast_to(given["times"][-1], batch))
    assert given["reached"][0] == NFE - 1


@pytest.mark.parametrize("n", range(NFE))
def test_it_ends_where_an_output_is_not_finite(n: int) -> None:
    assert walk is not None
    given = arguments()
    plain = given["evaluations"]

    def spoiled(which: int) -> None:
        plain[which]()
        if given["time"][0] == given["times"][n]:
            given["matrices"][which][-1, 500] = np.inf

    given["evaluations"] = (lambda: spoiled(0)), (lambda: spoiled(1))
    assert walk(*given.values()) is False
    assert given["reached"][0] == n


def test_what_an_evaluation_raises_passes() -> None:
    assert walk is not None
    given = arguments()

    def failing() -> None:
        raise KeyboardInterrupt

    given["evaluations"] = (given["evaluations"][0], failing)
    with pytest.raises(KeyboardInterrupt):
        walk(*given.values())
    assert given["reached"][0] == 1


SPOILED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "update of two dimensions": lambda given: {"update": given["update"][0]},
    "update of float64": lambda given: {"update": given["update"].astype(np.float64)},
    "states that do not fit": lambda given: {"update": np.zeros((NFE, 1, 2), np.float32)},
    "no states": lambda given: {
        "update": np.zeros((NFE, 0, 1), np.float32),
        "matrices": tuple(matrix[:1] for matrix in given["matrices"]),
    },
    "one matrix short": lambda given: {"matrices": (given["matrices"][0], given["matrices"][1][:, :9])},
    "one matrix low": lambda given: {"matrices": (given["matrices"][0], given["matrices"][1][:2])},
    "a matrix of strided rows": lambda given: {
        "matrices": (given["matrices"][0][:, ::2], given["matrices"][1][:, ::2])
    },
    "a matrix of float64": lambda given: {"matrices": (given["matrices"][0], given["matrices"][1].astype(np.float64))},
    "too few times": lambda given: {"times": given["times"][:2]},
    "times of another dtype": lambda given: {"times": given["times"].astype(np.float64)},
    "a result too long": lambda given: {"result": np.zeros(ELEMENTS + 1, np.float32)},
    "a result of float64": lambda given: {"result": np.zeros(7)},
    "reached of int32": lambda given: {"reached": np.zeros(1, np.int32)},
}


@pytest.mark.parametrize("name", SPOILED)
def test_memory_that_does_not_fit_is_refused_before_anything_runs(name: str) -> None:
    assert walk is not None
    given = arguments()
    given |= SPOILED[name](given) | {"evaluations": (lambda: pytest.fail("it ran"),) * 2}
    with pytest.raises(ValueError, match="walk: expected "):
        walk(*given.values())


@pytest.mark.parametrize("name", ["time", "result", "reached"])
def test_memory_that_cannot_be_written_is_refused(name: str) -> None:
    assert walk is not None
    given = arguments()
    given[name].flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        walk(*given.values())
