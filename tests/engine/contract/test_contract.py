"""The contract: what it accepts, what it refuses by name, and its way through JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pfdiff.engine.contract.condition import Condition, parse_condition
from pfdiff.engine.contract.contract import Contract
from pfdiff.engine.errors import InputError

GOOD: dict[str, Any] = {"name": "unet", "shape": (3, 8, 8), "schedule": "linear:1000", "prediction": "eps"}


def test_json_round_trip_keeps_every_field() -> None:
    label = Condition("label", "int64", default=10, low=0, high=10, labels=("shirt", "bag"))
    text = Condition("text", "float32", (77, 768))
    contract = Contract(
        **GOOD,
        time_dtype="int64",
        time_scale=1000.0,
        time_rank=0,
        conditions=(label, text),
        sigma_data=1.0,
        data_range=(0.0, 1.0),
        fixed_batch=4,
        precision="bf16",
        learned_sigma=True,
    )
    assert Contract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract


def test_defaults_survive_a_short_dict() -> None:
    assert Contract.from_dict({**GOOD, "shape": [3, 8, 8]}) == Contract(**GOOD)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", 7),
        ("shape", []),
        ("shape", [3, 0, 8]),
        ("shape", "3x8x8"),
        ("shape", [3.0, 8, 8]),
        ("schedule", None),
        ("prediction", "noise"),
        ("precision", "int8"),
        ("input", "x y"),
        ("time", "x"),
        ("output", ""),
        ("time_dtype", "int32"),
        ("time_rank", 2),
        ("time_rank", True),
        ("time_scale", 0),
        ("time_scale", float("nan")),
        ("sigma_data", -1.0),
        ("data_range", [1.0, -1.0]),
        ("data_range", [0.0]),
        ("fixed_batch", 0),
        ("fixed_batch", 2.0),
        ("learned_sigma", "yes"),
        ("conditions", "label"),
        ("conditions", [{"name": "label"}]),
        ("conditions", [{"name": "label", "dtype": "int64", "size": 3}]),
        ("conditions", [{"name": "t", "dtype": "int64"}]),
        ("conditions", ["label"]),
        ("colour", 3),
    ],
)
def test_a_wrong_field_is_named_in_one_line(field: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        Contract.from_dict({**GOOD, "shape": [3, 8, 8], field: value})
    message = str(caught.value)
    assert "\n" not in message
    words = {"conditions": "condition", "time": "'x' is used twice"}
    assert (words.get(field, field)) in message or "used twice" in message


@pytest.mark.parametrize("field", list(GOOD))
def test_a_missing_field_is_named(field: str) -> None:
    plain = {**GOOD, "shape": [3, 8, 8]}
    del plain[field]
    with pytest.raises(InputError, match=f"'{field}' is missing"):
        Contract.from_dict(plain)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "seeds"},
        {"name": "a-b"},
        {"dtype": "float64"},
        {"shape": (0,)},
        {"low": 3, "high": 1},
        {"dtype": "float32", "low": 0},
        {"default": 1.5},
        {"default": float("inf")},
        {"default": 5, "high": 4},
        {"labels": (1, 2)},
        {"alias": "a-b"},
        {"default": (1, 2)},
        {"default": (1, 2, 3), "shape": (2,)},
        {"default": (1, 2.5), "shape": (2,)},
        {"default": (1, 5), "shape": (2,), "high": 4},
        {"dtype": "int32", "default": 2**31},
        {"dtype": "float16", "default": 65505},
        {"dtype": "bool", "default": 0.5},
        {"dtype": "bool", "default": 2},
    ],
)
def test_a_wrong_condition_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="condition"):
        Condition(**{"name": "label", "dtype": "int64", **fields})


def test_feed_times_scale_and_dtype() -> None:
    scaled = Contract(**GOOD, time_scale=1000.0).feed_times([0.5, 0.25])
    assert scaled.dtype == np.float32
    assert scaled.tolist() == [500.0, 250.0]
    whole = Contract(**GOOD, time_dtype="int64").feed_times([999.0, 3.0])
    assert whole.dtype == np.int64
    assert whole.tolist() == [999, 3]
    with pytest.raises(InputError, match=r"2\.5 is no integer"):
        Contract(**GOOD, time_dtype="int64").feed_times([2.5])


def test_condition_values() -> None:
    label = Condition("label", "int64", default=10, low=0, high=10, labels=("shirt", "bag"))
    assert label.values(None, 3).tolist() == [10, 10, 10]
    assert label.values("bag", 2).tolist() == [1, 1]
    assert label.values(["bag", "shirt"], 2).tolist() == [1, 0]
    assert label.values([4], 2).tolist() == [4, 4]
    assert label.values(np.array([1.0, 2.0]), 2).dtype == np.int64
    text = Condition("text", "float16", (2, 3))
    assert text.values(np.ones((2, 3)), 4).shape == (4, 2, 3)
    assert text.values(np.ones((4, 2, 3)), 4).dtype == np.float32


@pytest.mark.parametrize(
    ("dtype", "outside", "kept"),
    [
        ("int32", [2**32 + 5, -(2**31) - 1, 2.0**31], [2**31 - 1, -(2**31)]),
        ("int64", [2**63, 2.0**63, -(2.0**64)], [2**63 - 1, -(2**63), 2.0**62]),
        ("float32", [1e39, -1e39, float("inf")], [float(np.finfo(np.float32).max), 2**63]),
        ("float16", [1e5, -65505], [65504, np.float32(-65504)]),
        ("bfloat16", [3.4e38], [float(np.array(0x7F7F0000, np.uint32).view(np.float32))]),
        ("bool", [0.3, 7, -1, float("nan")], [0, 1, 1.0, True, False, np.bool_(True)]),
    ],
)
def test_what_a_dtype_does_not_hold_is_refused(dtype: str, outside: list[Any], kept: list[Any]) -> None:
    one = Condition("value", dtype, (2,))
    for value in outside:
        for given in ([value, 0], np.array([value, 0])):
            with pytest.raises(InputError, match="condition 'value': got"):
                one.values(given, 1)
        with pytest.raises(InputError, match="condition 'value': got"):
            Condition("value", dtype).values(value, 1)
    for value in kept:
        assert one.values([value, 0], 3).tolist() == 3 * [[value, 0]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "missing"),
        (11, r"got 11, expected values in 0\.\.10"),
        ([-1, 3], r"got -1\.\.3"),
        (1.5, "fractions"),
        (float("nan"), "NaN"),
        ([1, 2, 3], "3 values for 2 samples; give 1 or 2"),
        ([[1], [2]], r"shape \[2, 1\]"),
        ("sandal", "unknown label 'sandal'; known labels: shirt, bag"),
        (object(), "expected numbers"),
    ],
)
def test_condition_refuses(given: Any, message: str) -> None:
    label = Condition("label", "int64", low=0, high=10, labels=("shirt", "bag"))
    with pytest.raises(InputError, match=message) as caught:
        label.values(given, 2)
    assert "\n" not in str(caught.value)


def test_a_default_of_one_number_each() -> None:
    sizes = Condition("sizes", "float32", (3,), default=(64, 0, 0.5))
    np.testing.assert_array_equal(sizes.values(None, 2), [[64, 0, 0.5]] * 2)
    contract = Contract(name="a", shape=(1,), schedule="vp", prediction="eps", conditions=(sizes,))
    assert Contract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract


def test_conditions_by_their_aliases() -> None:
    text = Condition("encoder_hidden_states", "float32", (2,), alias="prompt_embeds")
    words: dict[str, Any] = {"name": "a", "shape": (1,), "schedule": "vp", "prediction": "eps"}
    contract = Contract(**words, conditions=(text, Condition("label", "int64")))
    assert contract.by_name({"prompt_embeds": 1, "label": 2}) == {"encoder_hidden_states": 1, "label": 2}
    with pytest.raises(InputError, match="unknown condition 'text'; this network takes encoder_hidden_states, label"):
        contract.by_name({"text": 1})
    with pytest.raises(InputError, match="'encoder_hidden_states' is given twice, also as 'encoder_hidden_states'"):
        contract.by_name({"prompt_embeds": 1, "encoder_hidden_states": 1})
    with pytest.raises(InputError, match="the name 'label' is used twice"):
        Contract(**words, conditions=(Condition("label", "int64"), Condition("other", "int64", alias="label")))


def test_parse_condition() -> None:
    assert parse_condition("label:int64:0..9") == Condition("label", "int64", low=0, high=9)
    assert parse_condition("text:float32:77x768") == Condition("text", "float32", (77, 768))
    assert parse_condition("label:int64:0..9=9") == Condition("label", "int64", default=9, low=0, high=9)
    assert parse_condition("scale:float32=-1.5") == Condition("scale", "float32", default=-1.5)
    assert parse_condition("size:int64:6:0..1024") == Condition("size", "int64", (6,), low=0, high=1024)
    for wrong in ("label", "label:int64:a", "label:int64:1:2:3", "label:int64:0..1..2", "label:int64=ten"):
        with pytest.raises(InputError, match="expected name:dtype"):
            parse_condition(wrong)
