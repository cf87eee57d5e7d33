"""Where sampling starts, and which starts of eps-networks are doubted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import pfdiff
from pfdiff.engine.compiler.start import default_start, doubt_of_start

SCHEDULE = "cosine:60?beta_max=0.999"


def test_a_start_where_x0_is_rounding_is_doubted():
    program = pfdiff.compile("pfdiff:k=2,l=1", "cosine:60", 5)
    doubt = doubt_of_start(program)
    assert doubt is not None
    # alpha_59 = sqrt(cos^2(...) product with betas up to 0.9999), written out.
    every = np.cos((np.arange(61) / 60 + 0.008) / 1.008 * np.pi / 2) ** 2
    alpha = math.sqrt(np.prod(1 - np.minimum(1 - every[1:] / every[:-1], 0.9999)))
    assert f"alpha is {alpha:.1e}" in doubt
    assert f"times {1 / alpha:.0f};" in doubt
    assert "start at 58 " in doubt
    sound: tuple[dict[str, Any], ...] = ({"t_start": 58}, {"clip": 1.0}, {"prediction": "v"})
    for words in sound:
        assert doubt_of_start(pfdiff.compile("pfdiff:k=2,l=1", "cosine:60", 5, **words)) is None
    assert doubt_of_start(pfdiff.compile("ddim", "linear:1000", 5)) is None


def test_default_start_is_where_an_eps_network_is_sound():
    assert default_start(SCHEDULE, "eps") == 58
    assert default_start(SCHEDULE, "v") == 59
    assert default_start("linear:1000", "v") == 999
    assert default_start("edm", "edm") == 80
    zero = "linear:1000?terminal=0"
    assert default_start(zero, "eps", clip=1.0) == default_start(zero, "eps") < 999
    assert pfdiff.compile("auto", zero, 4, "trailing", clip=1.0).times[0] == default_start(zero, "eps")
