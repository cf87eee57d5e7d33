"""What a refusal is: an InputError of one line that says what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from pfdiff import InputError


def check_refused(says: str, call: Callable[..., object], *given: object) -> None:
    """call(*given) is refused, and `says` stands in the message."""
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        call(*given)
    assert "\n" not in str(caught.value)
