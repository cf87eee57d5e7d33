"""Words of `Engine.sample` that a network has conditions of the same name for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pfdiff.engine.contract.contract import Condition, Contract
from pfdiff.engine.errors import InputError
from pfdiff.engine.runtime.asked import Asked

PLAIN = Contract("net", (3, 4, 4), "linear:1000", "eps")
OWN = Contract(
    "net",
    (3, 4, 4),
    "linear:1000",
    "eps",
    conditions=(Condition("image", "float32", (3, 4, 4)), Condition("s", "int64", alias="prompt")),
)


def test_a_condition_goes_before_the_word() -> None:
    image = np.zeros((3, 4, 4))
    number: Any = 3  # of a condition that has the name of ours
    asked, conditions = Asked(image=image, prompt=number).without(OWN, {})
    assert asked.image is None
    assert asked.prompt is None
    assert conditions["image"] is image
    assert conditions["prompt"] == 3
    kept, conditions = Asked(image=image, strength=0.5).without(PLAIN, {"label": 1})
    assert kept.image is image
    assert kept.way == 0.5
    assert conditions == {"label": 1}


def test_a_strength_needs_a_picture() -> None:
    assert Asked().without(PLAIN, {})[0].way == 0.8
    for asked in (Asked(strength=0.5), Asked(strength_counts="whole"), Asked(image=1, strength=0.5)):
        with pytest.raises(InputError, match="strength without a picture"):
            asked.without(OWN, {})
