"""Where the scale of guidance is known to be 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pfdiff.engine.backends.guided import UnitScale

TIMES = np.array([999, 500, 200, 0], np.int64)


def given(*values: float) -> Any:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("unit", "scale", "known"),
    [
        (UnitScale("guidance"), given(1, 1, 1), [True] * 4),
        (UnitScale("guidance"), given(1, 2, 1), [False] * 4),
        (UnitScale("guidance"), given(0), [False] * 4),
        (UnitScale("guidance"), given(1 + 2**-23), [False] * 4),  # the next number of float32
        (UnitScale("guidance", offset=1.0), given(0, 0), [True] * 4),
        (UnitScale("guidance", offset=1.0), given(1, 1), [False] * 4),
        (UnitScale("guidance", interval=(200, 500)), given(3, 1), [True, False, False, True]),
        (UnitScale("guidance", interval=(201, 499)), given(3, 1), [True] * 4),
        (UnitScale("guidance", interval=(0, 999)), given(3), [False] * 4),
        (UnitScale("guidance", interval=(0, 999)), given(1, 1), [True] * 4),
    ],
)
def test_all_samples_or_the_time_say_so(unit: UnitScale, scale: Any, known: list[bool]) -> None:
    assert unit.known(scale, TIMES).tolist() == known
    assert unit.known(scale, np.array(TIMES[0])).tolist() == known[0]  # a time of no batch


def test_a_tensor_on_a_device_is_not_read() -> None:
    nowhere = torch.ones(2, device="meta")
    assert not UnitScale("guidance").known(nowhere, TIMES).any()
    assert UnitScale("guidance", interval=(300, 600)).known(nowhere, TIMES).tolist() == [True, False, True, True]


def test_times_are_compared_as_the_network_compares_them() -> None:
    """0.1 and 0.3 as float32, which lie beside those of float64."""
    low, high = float(np.float32(0.1)), float(np.float32(0.3))
    times = np.array([0.1, 0.3, 0.30000004, 0.09999999], np.float32)
    tensor = torch.from_numpy(times)
    outside = ~((tensor >= low) & (tensor <= high))
    assert UnitScale("guidance", interval=(low, high)).known(given(2), times).tolist() == outside.tolist()
    assert outside.tolist() == [False, False, True, True]
