"""Schedules against their definitions, and the errors of their strings."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import pfdiff
from pfdiff.engine.compiler.schedule import parse_schedule

from ...refusals import check_refused

ALL = [
    "linear:1000",
    "scaled_linear:1000",
    "cosine:300",
    "cosine:60?beta_max=0.999",
    "vp",
    "edm",
    "flow",
    "flow:shift=3",
]


@pytest.mark.parametrize("text", ALL)
def test_falls_and_inverts(text):
    schedule = parse_schedule(text)
    times = np.arange(schedule.last + 1) if schedule.discrete else np.linspace(schedule.first, 0.99 * schedule.last, 50)
    assert np.all(np.diff(schedule.lam(times)) < 0)
    np.testing.assert_allclose(schedule.time_from_lambda(schedule.lam(times)), times, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(schedule.unwarp(schedule.warp(times)), times, rtol=1e-12)
    assert (schedule.alpha(schedule.clean), schedule.sigma(schedule.clean)) == (1, 0)


@pytest.mark.parametrize("text", [t for t in ALL if t not in ("edm",) and not t.startswith("flow")])
def test_variance_is_preserved(text):
    schedule = parse_schedule(text)
    times = np.arange(schedule.last + 1) if schedule.discrete else np.linspace(0, 1, 50)
    np.testing.assert_allclose(schedule.alpha(times) ** 2 + schedule.sigma(times) ** 2, 1, rtol=1e-12)


def test_published_values():
    # alphabar_T of DDPM (arXiv 2006.11239) and of Stable Diffusion, known to four digits.
    assert float(parse_schedule("linear:1000").alpha(999)) ** 2 == pytest.approx(4.0358e-05, rel=1e-4)
    assert float(parse_schedule("scaled_linear:1000").alpha(999)) ** 2 == pytest.approx(0.0047, rel=1e-2)
    # Cosine: the closed form wherever no beta is clipped; the last is.
    cosine = parse_schedule("cosine:300")
    closed = [math.cos((u / 300 + 0.008) / 1.008 * math.pi / 2) ** 2 for u in range(301)]
    np.testing.assert_allclose(cosine.alpha([9, 149, 298]) ** 2, [closed[u + 1] / closed[0] for u in (9, 149, 298)])
    assert float(cosine.alpha(299) / cosine.alpha(298)) ** 2 == pytest.approx(1e-4)


def test_vp_is_the_integral_of_beta():
    vp = parse_schedule("vp")
    t = 0.37
    grid = np.linspace(0, t, 100_001)
    integral = np.trapezoid(0.1 + grid * 19.9, grid)
    assert float(vp.alpha(t)) == pytest.approx(math.exp(-integral / 2), rel=1e-9)


def test_shift_bends_even_grids_only():
    assert float(parse_schedule("flow:shift=3").warp(0.5)) == pytest.approx(0.75)
    assert float(parse_schedule("flow:shift=3").sigma(0.5)) == 0.5


@pytest.mark.parametrize("suffix", [".npy", ".txt", ".json", "-dict.json", "-betas.json"])
def test_own_cumulative_products(tmp_path, suffix):
    expected = parse_schedule("cosine:60")
    values = expected.alpha(np.arange(60)) ** 2
    path = tmp_path / f"products{suffix}"
    if suffix == ".npy":
        np.save(path, values)
    elif suffix == ".txt":
        np.savetxt(path, values, fmt="%.17g")
    elif suffix == "-betas.json":
        path.write_text(json.dumps({"betas": (1 - values / np.append(1, values[:-1])).tolist()}))
    else:
        data = values.tolist()
        path.write_text(json.dumps(data if suffix == ".json" else {"alphas_cumprod": data}))
    np.testing.assert_allclose(parse_schedule(f"alphas:{path}").alpha(np.arange(60)), expected.alpha(np.arange(60)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("linea:1000", "unknown schedule 'linea:1000'; known: linear"),
        ("linear", "needs its number of times"),
        ("linear:0", "needs its number of times"),
        ("linear:-5", "needs its number of times"),
        ("linear:1e3", "needs its number of times"),
        ("cosine:60?beta=1", "has no parameter 'beta'; it has s, beta_min, beta_max"),
        ("cosine:60?beta_max", "expected key=number"),
        ("vp?beta_max=-1", "every parameter must be above 0"),
        ("flow:3", "expected key=number"),
        ("linear:10?beta_max=1.5", "cumulative products must fall strictly"),
        ("alphas:/nowhere/products.npy", "cannot read schedule file /nowhere/products.npy"),
        ("alphas:", "unknown schedule"),
        ("alphas:sha256=00", "its numbers are in no engine loaded here; give their file, alphas:FILE"),
    ],
)
def test_bad_strings(text, says):
    check_refused(says, parse_schedule, text)


def test_bad_times():
    with pytest.raises(pfdiff.InputError, match="time 1000 is outside this schedule; it runs from 999 down to -1"):
        parse_schedule("linear:1000").alpha(1000)
    with pytest.raises(pfdiff.InputError, match=r"time 0\.5 is not an integer"):
        parse_schedule("linear:1000").alpha(0.5)
    with pytest.raises(pfdiff.InputError, match="time nan is outside"):
        parse_schedule("vp").alpha(np.nan)
