"""`ddim:eps=own` against diffusers' DDIMScheduler with clip_sample, which clips x0 and keeps the network's eps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pfdiff.engine.compiler.compile import compile
from pfdiff.engine.compiler.program import Program
from pfdiff.engine.errors import InputError
from pfdiff.export.sources.diffusers_config import read_config
from pfdiff.quality.sampling.pool import Pool

from ...small.diffusers import WARNINGS, diffusers

pytestmark = WARNINGS

SHAPE = (3, 2, 5)
BOUND = 0.6  # which about half of x0 leaves


def network(x: Any, t: float) -> Any:
    """Float64 or float32; not linear, and no function of x alone."""
    return 0.8 * (x + 0.3 * x**2 / (1 + x**2)) + 0.002 * (t % 7)


def diffusers_sample(config: dict[str, Any], nfe: int, noise: torch.Tensor) -> torch.Tensor:
    scheduler = diffusers.DDIMScheduler(**config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(nfe)
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, float(t)), t, x).prev_sample
    return x


def ours(solver: str, config: dict[str, Any], nfe: int, **options: Any) -> Program:
    """On the scheduler's own times."""
    found = read_config({"_class_name": "DDIMScheduler", **config})
    assert found.keeps_eps
    words = {"prediction": found.prediction, "clip": found.clip, "end": found.end, **options}
    return compile(solver, found.schedule, nfe, found.points(nfe), **words)


@pytest.mark.parametrize("one", [True, False])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(("betas", "count"), [("linear", 1000), ("squaredcos_cap_v2", 100)])
def test_equals_diffusers_loop(betas: str, count: int, prediction: str, one: bool) -> None:
    config = {"beta_schedule": betas, "num_train_timesteps": count, "prediction_type": prediction}
    config |= {"clip_sample": True, "clip_sample_range": BOUND, "set_alpha_to_one": one, "steps_offset": 1 - one}
    noise = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = diffusers_sample(config, 10, noise)
    found = ours("ddim:eps=own", config, 10).evaluate(network, noise)
    torch.testing.assert_close(found, wanted, rtol=0, atol=3e-5)  # diffusers' betas are float32
    clipped = ours("ddim", config, 10).evaluate(network, noise)
    assert (clipped - wanted).abs().max() > 0.01


@pytest.mark.parametrize("basis", ["eps", "x0", "v"])
def test_every_basis_gives_the_same(basis: str) -> None:
    config = {"clip_sample_range": BOUND}
    noise = np.random.default_rng(0).standard_normal((4, *SHAPE))
    wanted = ours("ddim:eps=own", config, 6).evaluate(network, noise)
    np.testing.assert_allclose(ours("ddim:eps=own", config, 6, basis=basis).evaluate(network, noise), wanted, atol=1e-9)


def test_without_a_clip_or_clipping_it_is_ddim() -> None:
    noise = np.random.default_rng(0).standard_normal((4, *SHAPE))
    plain = compile("ddim", "linear:1000", 6, "trailing")
    unbounded = compile("ddim:eps=own", "linear:1000", 6, "trailing")
    assert not unbounded.keeps_eps
    assert "U" not in unbounded.to_dict()
    bounded = compile("ddim:eps=own", "linear:1000", 6, "trailing", clip=1e6)
    wanted = plain.evaluate(network, noise)
    np.testing.assert_array_equal(unbounded.evaluate(network, noise), wanted)
    np.testing.assert_allclose(bounded.evaluate(network, noise), wanted, rtol=1e-9, atol=1e-9)


def test_it_is_kept_in_json_and_by_the_search() -> None:
    program = compile("ddim:eps=own", "cosine:100", 5, "trailing", prediction="x0", clip=BOUND)
    again = Program.from_json(program.to_json())
    assert again.digest == program.digest
    np.testing.assert_array_equal(again.U, program.U)
    noise = np.random.default_rng(0).standard_normal((4, *SHAPE)).astype(np.float32)
    pool = Pool(lambda x, t, rows: network(x, t).astype(np.float32), noise)
    found = pool.sample(again, np.arange(4)).reshape(noise.shape)
    np.testing.assert_allclose(found, program.evaluate(network, noise.astype(np.float64)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("solver", "said"), [("ddim:eps=raw", "known: clipped, own"), ("ddim:eps=own,eta=0.5", "without an eta, got 0.5")]
)
def test_what_it_is_not_is_refused(solver: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        compile(solver, "linear:1000", 5, clip=1.0)


def damaged(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    plain = compile("ddim:eps=own", "linear:1000", 3, clip=1.0).to_dict()
    change(plain)
    return plain


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clip": None}, "U is given without a clip"),
        ({"V": [[0.0], [1.0], [0.0]], "table": 4 * [5 * [0.5]]}, "beside V"),
    ],
)
def test_what_no_loop_executes_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Program.from_dict(damaged(lambda plain: plain.update(change)))


@pytest.mark.parametrize("value", [[[1.0]], [[1.0], [2.0], [float("nan")]], "all"])
def test_a_damaged_table_is_named(value: Any) -> None:
    with pytest.raises(InputError, match="not a program: U"):
        Program.from_dict(damaged(lambda plain: plain.update(U=value)))
