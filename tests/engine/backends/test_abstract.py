"""engine/backends/abstract.py: the buffers of a trial batch."""

from __future__ import annotations

from dataclasses import replace

import torch

from pfdiff.engine.backends.abstract import Buffers
from pfdiff.engine.contract.condition import Condition
from pfdiff.engine.contract.contract import DecoderContract

from ...small.engine import CONTRACT, SHAPE


def test_trial_buffers_have_what_any_network_takes() -> None:
    conditions = (
        Condition("label", "int64", low=3, high=9),
        Condition("shift", "float16", (2,), default=(0.5, -1.0)),
        Condition("mask", "bool", (1, 2)),
    )
    contract = replace(CONTRACT, conditions=conditions, time_dtype="int64", time_rank=0)
    with torch.inference_mode(), torch.device("meta"):
        made = Buffers.of(contract, 3, torch.bfloat16)
    assert made.x.shape == made.out.shape == (3, *SHAPE)
    assert made.x.dtype == made.out.dtype == torch.bfloat16
    assert made.t is not None
    assert (made.t.shape, made.t.dtype, made.t.item()) == ((), torch.int64, 1)
    label, shift, mask = made.conditions
    assert label.tolist() == [3] * 3
    assert shift.dtype == torch.float16
    assert shift.tolist() == [[0.5, -1.0]] * 3
    assert mask.tolist() == [[[False, False]]] * 3
    assert made.inputs == (made.x, made.t, *made.conditions)
    assert {(one.device.type, one.is_inference()) for one in (*made.inputs, made.out)} == {("cpu", False)}


def test_a_decoder_has_no_time() -> None:
    made = Buffers.of(DecoderContract("twice", SHAPE, (3, 6, 10)), 2)
    assert (made.t, made.conditions) == (None, ())
    assert made.out.shape == (2, 3, 6, 10)
    assert made.inputs == (made.x,)
