"""engine/runtime/timing/rate.py: the report of a loop, from times that are known."""

from __future__ import annotations

import gc

import numpy as np

from pfdiff.engine.runtime.timing import rate


def test_missed_ticks_lateness_and_jitter_are_those_of_the_times() -> None:
    hz, ticks = 50.0, 1000
    due = np.arange(ticks) / hz
    begun, ended = due + 0.001, due + 0.004
    ended[10] = due[10] + 0.0201  # just over
    ended[20] = due[20] + 0.0199  # just within
    begun[500] += 0.01  # late, but done in time
    ended[500] = begun[500] + 0.003
    ended[700], begun[701], ended[701] = due[700] + 0.05, due[700] + 0.05, due[700] + 0.053  # two are missed
    found = rate.report(begun, ended, hz, load=1)
    assert (found.ticks, found.missed, found.load, found.seconds) == (1000, 3, 1, 20.0)
    np.testing.assert_allclose(found.late_ms[0], 1.0)
    np.testing.assert_allclose(found.call_ms[0], 3.0)
    np.testing.assert_allclose(found.response_ms[0], 4.0)
    np.testing.assert_allclose(found.late_ms[3], 30.0)
    np.testing.assert_allclose(found.jitter_ms, 1e3 * np.diff(begun).std())


def test_every_tick_is_called_once_and_in_order() -> None:
    called: list[int] = []
    found = rate.run_at(called.append, 400.0, 0.1)
    assert called == [*range(rate.WARM_UP), *range(40)]
    assert found.ticks == 40
    assert gc.isenabled()
    assert found.late_ms[3] < 1e3


def test_a_call_that_takes_longer_than_a_tick_misses_all_but_nothing_is_left_out() -> None:
    import time

    found = rate.run_at(lambda tick: time.sleep(0.005), 500.0, 0.04)
    assert found.missed == found.ticks == 20
