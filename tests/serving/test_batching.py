"""The queue before an engine, by a clock of the test's own: what is batched, when, and what is refused."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest

from pfdiff.serving.batching import Batcher
from pfdiff.serving.jobs import Batch, Job, joined
from pfdiff.serving.orders import Kind, NotDrawnError, Order

KIND = Kind("engine", 8, pixels=False)
OTHER = replace(KIND, nfe=5)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def order(*seeds: int, kind: Kind = KIND) -> Order:
    return Order(kind, np.array(seeds, np.uint64), {"label": np.array(seeds)})


def put(queue: Batcher, one: Order) -> Job:
    """As a server does, whose loop nobody runs here."""
    loop = asyncio.new_event_loop()
    loop.close()
    return queue.put(one, loop.create_future())


def batcher(clock: Clock, *buckets: int, room: int = 10, max_wait_s: float = 1.0) -> Batcher:
    return Batcher(buckets or (4,), max_wait_s=max_wait_s, room=room, clock=clock)


def taken(queue: Batcher) -> list[int]:
    batch = queue.take()
    assert isinstance(batch, Batch)
    return joined(batch.orders).seeds.tolist()


def test_a_full_bucket_goes_at_once_and_a_larger_order_is_cut() -> None:
    queue = batcher(Clock())
    put(queue, order(0, 1, 2))
    put(queue, order(3, 4, 5, 6, 7))
    assert taken(queue) == [0, 1, 2, 3]
    assert taken(queue) == [4, 5, 6, 7]
    assert queue.waiting == 0


def test_others_are_waited_for_no_longer_than_told() -> None:
    clock = Clock()
    queue = batcher(clock)
    put(queue, order(0))
    clock.now += 0.6
    put(queue, order(1))
    clock.now += 0.4
    assert taken(queue) == [0, 1]


def test_kinds_never_mix_and_the_oldest_due_goes_first() -> None:
    clock = Clock()
    queue = batcher(clock, room=20)
    put(queue, order(0, kind=OTHER))
    put(queue, order(1, 2, 3, 4, 5))
    assert taken(queue) == [1, 2, 3, 4]  # full, while the other kind may still wait
    clock.now += 1.0
    assert taken(queue) == [0]
    assert taken(queue) == [5]


def test_a_kind_that_is_always_full_does_not_starve_another() -> None:
    clock = Clock()
    queue = batcher(clock, room=20)
    put(queue, order(99, kind=OTHER))
    clock.now += 1.1
    put(queue, order(1, 2, 3, 4))
    assert taken(queue) == [99]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({1: 1.0, 8: 6.0, 32: 24.0}, {1: 1, 3: 1, 6: 1, 7: 7, 8: 8, 15: 8, 31: 8, 32: 8, 70: 8}),  # as a CPU
        ({1: 1.0, 8: 8.0, 32: 32.0}, {1: 1, 8: 1, 70: 1}),  # where batches gain nothing
        ({1: 1.0, 8: 1.1, 32: 1.5}, {1: 1, 3: 3, 4: 4, 8: 8, 10: 8, 15: 15, 22: 22, 33: 32}),  # as a GPU
        ({}, {1: 1, 7: 1, 22: 8, 40: 32}),  # not known yet
    ],
)
def test_the_size_is_that_of_most_samples_a_second(seconds: dict[int, float], expected: dict[int, int]) -> None:
    queue = batcher(Clock(), 1, 8, 32)
    for bucket, one in seconds.items():
        queue.sampled(bucket, bucket, 5, 5 * one)
    assert {count: queue.fitting(count) for count in expected} == expected


def test_nobody_waits_for_a_larger_bucket_that_is_no_faster() -> None:
    clock = Clock()
    queue = batcher(clock, 1, 8, 32, room=40)
    for bucket, one in {1: 1.0, 8: 5.0, 32: 20.0}.items():
        queue.sampled(bucket, bucket, 5, 5 * one)
    put(queue, order(*range(8)))
    assert taken(queue) == list(range(8))  # at once, by a clock that stands


def test_clients_that_come_back_wait_for_each_other_alone() -> None:
    """Three of them before a bucket of four: the first batch waits for a fourth, the later ones do not."""
    clock = Clock()
    queue = batcher(clock)
    for first in (0, 10, 20):
        for seed in range(first, first + 3):
            put(queue, order(seed))
        clock.now += 1.0 if first == 0 else 0.0
        assert taken(queue) == [first, first + 1, first + 2]
        queue.sampled(3, 4, 8, 1.0)
        clock.now += 0.1


def test_who_is_not_back_yet_is_waited_for() -> None:
    """Two of three stand in the queue while one is drawn: all three make the next batch."""
    clock = Clock()
    queue = batcher(clock)
    put(queue, order(0))
    clock.now += 1.0
    assert taken(queue) == [0]
    put(queue, order(1, 2))
    clock.now += 0.1
    queue.sampled(1, 4, 8, 0.1)
    back = threading.Timer(0.05, lambda: put(queue, order(3)))
    back.start()
    assert taken(queue) == [1, 2, 3]
    back.join()


def test_after_a_pause_others_are_waited_for_again() -> None:
    clock = Clock()
    queue = batcher(clock)
    put(queue, order(0))
    clock.now += 1.0
    assert taken(queue) == [0]
    queue.sampled(1, 4, 8, 0.1)
    clock.now += 9.0
    put(queue, order(1))
    joining = threading.Timer(0.05, lambda: put(queue, order(2, 3, 4)))
    joining.start()
    assert taken(queue) == [1, 2, 3, 4]
    joining.join()


def test_less_than_the_smallest_bucket_is_padded() -> None:
    assert batcher(Clock(), 4, 8).fitting(3) == 3


def test_what_is_left_of_a_bucket_goes_next() -> None:
    clock = Clock()
    queue = batcher(clock, 2, 8)
    put(queue, order(1, 2, 3))
    clock.now += 1
    assert taken(queue) == [1, 2]
    assert taken(queue) == [3]


def test_conditions_follow_their_samples_through_cuts() -> None:
    queue = batcher(Clock())
    put(queue, order(7, 8, 9))
    put(queue, order(1, 2, 3, 4, 5))
    for expected in ([7, 8, 9, 1], [2, 3, 4, 5]):
        batch = queue.take()
        assert batch is not None
        whole = joined(batch.orders)
        assert whole.seeds.tolist() == expected
        assert whole.conditions["label"].tolist() == expected


def test_a_full_queue_says_when_to_come_back() -> None:
    queue = batcher(Clock(), 100)
    queue.sampled(10, 100, 8, 25.0)
    put(queue, order(0, 1, 2))
    with pytest.raises(NotDrawnError, match="3 samples wait, it holds 10") as refused:
        put(queue, order(*range(8)))
    assert (refused.value.status, refused.value.retry_s) == (429, 8)  # 3 samples of 2.5 s
    put(queue, order(*range(7)))
    with pytest.raises(NotDrawnError) as refused:
        put(queue, order(*range(11)))
    assert refused.value.status == 400


def test_who_left_is_not_sampled_for() -> None:
    clock = Clock()
    queue = batcher(clock)
    gone, half_gone = put(queue, order(0, 1)), put(queue, order(2, 3, 4))
    queue.drop(gone)
    assert queue.waiting == 3
    clock.now += 1.0
    assert taken(queue) == [2, 3, 4]
    queue.drop(half_gone)
    assert queue.waiting == 0


def test_closing_lets_what_waits_go_first() -> None:
    queue = batcher(Clock())
    put(queue, order(0))
    queue.close(NotDrawnError(503, "shutting down"))
    with pytest.raises(NotDrawnError, match="shutting down"):
        put(queue, order(1))
    assert taken(queue) == [0]
    assert queue.take() is None


def test_take_wakes_for_a_new_order() -> None:
    queue = Batcher((1,), max_wait_s=60, room=2)
    found: list[list[int]] = []
    thread = threading.Thread(target=lambda: found.append(taken(queue)))
    thread.start()
    put(queue, order(5))
    thread.join(10)
    assert found == [[5]]


@pytest.mark.parametrize(
    "second", [order(0, kind=OTHER), order(1), order(1, 2)], ids=["another kind", "the rest of a batch", "too much"]
)
def test_take_that_waits_is_woken_by_what_is_due_now(second: Order) -> None:
    """The first order may wait for a minute, by a real clock; the second fills a batch of two, or of its own kind."""
    queue = Batcher((2,), max_wait_s=60, room=8)
    queue.sampled(2, 2, 8, 1.0)
    found: list[list[int]] = []
    thread = threading.Thread(target=lambda: found.append(taken(queue)))
    thread.start()
    put(queue, order(0))
    if second.kind == OTHER:
        put(queue, second)
    put(queue, second)
    thread.join(20)
    assert found == [[0, 0] if second.kind == OTHER else [0, 1]]


def test_closing_wakes_who_waits_for_more() -> None:
    queue = Batcher((2,), max_wait_s=60, room=8)
    found: list[list[int]] = []
    thread = threading.Thread(target=lambda: found.append(taken(queue)))
    thread.start()
    put(queue, order(7))
    queue.close(NotDrawnError(503, "shutting down"))
    thread.join(20)
    assert found == [[7]]
