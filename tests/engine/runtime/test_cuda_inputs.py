"""The block of seeds and conditions: what is copied in a call, and when the host's memory is written again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pfdiff.engine.contract.condition import Condition
from pfdiff.engine.errors import InputError
from pfdiff.engine.runtime import inputs as given
from pfdiff.engine.runtime.cuda.blocks import ALIGNMENT_BYTES
from pfdiff.engine.runtime.cuda.inputs import MOST_SLOTS, InputBlock, InputRing
from pfdiff.engine.runtime.inputs import Conditions, Inputs

from ...small.engine import CONTRACT

CPU = torch.device("cpu")
CONDITIONS = (
    Condition("text", "bfloat16", (5, 3), default=0.5),
    Condition("label", "int64", default=1, low=0, high=9),
    Condition("mask", "bool", (2,)),
    Condition("scale", "float16", default=2.0),
)
MANY = replace(CONTRACT, conditions=CONDITIONS)


class Event:
    def __init__(self, *, done: bool) -> None:
        self.done, self.waited = done, 0

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.waited += 1


def inputs(count: int, **values: Any) -> Inputs:
    conditions, defaults = Conditions(MANY, CPU)({"mask": [True, False], **values}, count)
    return Inputs(np.arange(count, dtype=np.uint64) + 2**63, None, conditions, defaults)


def test_one_block_in_parts_that_vector_loads_take() -> None:
    block = InputBlock.of(MANY, 3, "cpu")
    parts = (block.seeds, *block.conditions)
    assert [tuple(one.shape) for one in parts] == [(3,), (3, 5, 3), (3,), (3, 2), (3,)]
    assert [one.dtype for one in parts] == [torch.int64, torch.bfloat16, torch.int64, torch.bool, torch.float16]
    starts = [one.data_ptr() - block.data.data_ptr() for one in parts]
    assert {start % ALIGNMENT_BYTES for start in starts} == {0}
    assert [start + one.nbytes for start, one in zip(starts[1:], parts[1:], strict=True)] == list(block.ends)
    for n, one in enumerate(parts):
        one.fill_(n + 1)
    assert [one.float().unique().tolist() for one in parts] == [[1.0], [2.0], [3.0], [1.0], [5.0]]  # none overlap


def test_what_is_given_arrives_and_padding_repeats_the_last() -> None:
    ring = InputRing(MANY, 4, CPU)
    label = np.array([3, 4])
    text = np.linspace(0, 1, 30, dtype=np.float32).reshape(2, 5, 3)
    ring.load(inputs(2, label=label, text=text))
    block = ring.block
    assert block.seeds.tolist() == [-(2**63), -(2**63) + 1, -(2**63) + 1, -(2**63) + 1]
    assert block.conditions[1].tolist() == [3, 4, 4, 4]
    rounded = torch.from_numpy(text).bfloat16()
    assert torch.equal(block.conditions[0], torch.cat((rounded, rounded[1:], rounded[1:])))
    assert block.conditions[2].tolist() == [[True, False]] * 4
    assert block.conditions[3].tolist() == [2.0] * 4
    ring.load(inputs(4))  # what was given goes back to its default
    assert block.conditions[1].tolist() == [1] * 4
    assert block.conditions[0].unique().tolist() == [0.5]


def test_defaults_stay_on_the_device() -> None:
    ring = InputRing(MANY, 4, CPU)
    ring.load(inputs(4))
    ring.block.conditions[3].fill_(7)  # on the device alone: a copy would bring the default back
    ring.block.conditions[0].fill_(7)
    ring.load(inputs(3, label=5))
    assert ring.block.conditions[1].tolist() == [5] * 4
    assert ring.block.conditions[3].tolist() == [7] * 4  # behind the last that changed, so not copied
    assert ring.block.conditions[0].unique().tolist() == [0.5]  # before it: of the same copy
    ring.load(inputs(3, scale=3.0))
    assert ring.block.conditions[3].tolist() == [3] * 4
    ring.load(inputs(3))
    assert ring.block.conditions[3].tolist() == [2] * 4


def test_the_hosts_memory_is_written_again_when_its_call_is_done() -> None:
    ring = InputRing(MANY, 2, CPU)
    first = ring.load(inputs(2))
    first.done = Event(done=True)
    assert ring.load(inputs(2)) is first
    first.done = Event(done=False)
    second = ring.load(inputs(2))
    assert second is not first
    second.done = Event(done=False)
    first.done.done = True
    assert ring.load(inputs(2)) is first
    assert first.done.waited == 0


def test_the_hosts_memory_outlives_inference_mode() -> None:
    ring = InputRing(MANY, 2, CPU)
    with torch.inference_mode(), torch.device("meta"):
        first = ring.load(inputs(2, text=np.ones((5, 3))))
    second = ring.load(inputs(2, text=np.zeros((5, 3))))  # writes bfloat16 by torch, into what was made inside
    assert second is first
    assert ring.block.conditions[0].unique().tolist() == [0.0]


def test_a_host_far_ahead_waits_for_the_oldest_call() -> None:
    ring = InputRing(MANY, 2, CPU)
    slots = []
    for _ in range(MOST_SLOTS):
        slots.append(ring.load(inputs(1)))
        slots[-1].done = Event(done=False)
    assert len({id(one) for one in slots}) == MOST_SLOTS
    assert ring.load(inputs(1)) is slots[0]
    assert [one.done.waited for one in slots] == [1] + [0] * (MOST_SLOTS - 1)


# Tensors on the device, on a machine without one: CPU tensors are taken for it.
@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)


def test_tensors_on_the_device_are_not_read(on_device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    checked, ring = Conditions(MANY, CPU), InputRing(MANY, 4, CPU)
    text, label, mask = torch.rand(3, 5, 3), torch.tensor([1, 2, 3], dtype=torch.int32), torch.tensor([False, True])

    def refuse(*_: object) -> None:
        raise AssertionError("a tensor on the device is read back to the host")

    with monkeypatch.context() as patched:
        for name in ("item", "tolist", "cpu", "__bool__", "__float__", "__int__"):
            patched.setattr(torch.Tensor, name, refuse)
        values, defaults = checked({"text": text, "label": label, "mask": mask}, 3)
        assert defaults == {3}
        ring.load(Inputs(np.arange(3, dtype=np.uint64), None, values, defaults))
    assert torch.equal(ring.block.conditions[0][:3], text.bfloat16())
    assert ring.block.conditions[1].tolist() == [1, 2, 3, 3]
    assert ring.block.conditions[2].tolist() == [[False, True]] * 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"label": torch.tensor([1, 10])}, r"'label': got 1..10, expected values in 0..9 \(int64\)"),
        ({"text": torch.full((5, 3), torch.nan)}, "'text': got NaN.* expected finite numbers"),
        ({"scale": torch.tensor(1e6)}, r"'scale': got 1000000.0, expected values in .* \(float16\)"),
    ],
)
def test_the_first_call_looks_at_them(values: dict[str, Any], message: str, on_device: None) -> None:
    found, defaults = Conditions(MANY, CPU)({"mask": [True, False], **values}, 2)
    with pytest.raises(InputError, match=message):
        given.look_at_device_values(MANY, Inputs(np.arange(2, dtype=np.uint64), None, found, defaults))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": torch.rand(4, 5, 3)}, r"'text': got shape \[4, 5, 3\], expected \[5, 3\] for all samples or \[2, 5,"),
        ({"label": torch.tensor(2.5)}, r"'label': got fractions, expected integers \(int64\)"),  # goes by the host
        ({"label": torch.tensor(12.0)}, r"'label': got 12.0, expected values in 0..9"),
    ],
)
def test_every_call_checks_shape_and_kind(values: dict[str, Any], message: str, on_device: None) -> None:
    with pytest.raises(InputError, match=message):
        Conditions(MANY, CPU)({"mask": [True, False], **values}, 2)
