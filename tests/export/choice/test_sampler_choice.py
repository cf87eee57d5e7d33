"""What `build` takes for what is left open, and what of a diffusers scheduler it keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pfdiff
from pfdiff.engine.compiler.defaults import AUTO, by_rule
from pfdiff.engine.compiler.solvers import parse_solver
from pfdiff.engine.errors import InputError
from pfdiff.export.choice.sampler_choice import chosen_program, described_choice
from pfdiff.export.sources.diffusers_config import read_config

THEN = Path(__file__).parents[2] / "data" / "e9258ea"
OPEN: dict[str, Any] = {"grid": None, "basis": None, "clip": None, "t_start": None, "end": None}


class Plain(nn.Module):
    """x [B, 2, 3, 3], t [B] -> a prediction of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.weight * x) + 0.001 * t[:, None, None, None]


def plain(schedule: str = "linear:1000", prediction: str = "eps") -> pfdiff.Network:
    return pfdiff.Network(Plain(), shape=(2, 3, 3), schedule=schedule, prediction=prediction)


@pytest.fixture(scope="module")
def stable() -> pfdiff.Network:
    """A small Stable Diffusion: leading spacing with an offset of 1, as its published file."""
    pytest.importorskip("diffusers")
    from ...small.diffusers import FAMILIES, pipeline_of

    return pfdiff.Network(pipeline_of(FAMILIES["sd1"]))


@pytest.fixture(scope="module")
def flow() -> pfdiff.Network:
    """A small Stable Diffusion 3: flow times at shift 3."""
    pytest.importorskip("diffusers")
    from ...small.diffusers import FAMILIES, pipeline_of

    return pfdiff.Network(pipeline_of(FAMILIES["sd3"]))


def test_options_given_in_full_compile_to_the_programs_of_e9258ea():
    """Byte for byte, so that an engine of then is up to date."""
    held = json.loads((THEN / "engine" / "engine.json").read_text())["programs"]
    network = pfdiff.Network(THEN / "source.onnx", shape=(2, 5, 7), schedule="linear:1000", prediction="eps")
    for record in held.values() if isinstance(held, dict) else held:
        program = chosen_program(network, "pfdiff:k=2,l=1", record["nfe"], {**OPEN, "grid": "logsnr"})
        assert program.digest == pfdiff.Program.from_json(json.dumps(record)).digest


def test_everything_open_is_the_rule():
    for prediction in ("eps", "v"):
        program, rule = (
            chosen_program(plain(prediction=prediction), AUTO, 6, OPEN),
            by_rule("linear:1000", prediction, 6),
        )
        assert (program.solver, program.grid, program.t_start) == (rule.solver, rule.grid, rule.t_start)


def test_build_and_tune_start_at_the_same_time():
    """An eps-network on a schedule that ends in noise: both below the last time, whatever the solver."""
    from pfdiff.quality.sampling.subject import Subject
    from pfdiff.quality.search.candidates import make_setting

    network = plain("cosine:300")
    program = chosen_program(network, "ddim", 6, {**OPEN, "grid": "uniform"})
    assert program.times[0] == make_setting(Subject.of(network), 6, None, None, None).t_start < 299


def test_diffusers_networks_take_the_open_grid_and_say_so(stable, flow):
    program = chosen_program(stable, "ddim", 5, OPEN)
    assert program.times.tolist() == [999, 799, 599, 399, 199]  # arXiv 2305.08891, table 2
    assert program.end == "first"
    u = np.array([1, 0.8, 0.6, 0.4, 0.2])  # shift 3 of evenly spaced u, by hand
    for solver in (AUTO, "ddim"):
        found = chosen_program(flow, solver, 5, OPEN).times
        np.testing.assert_allclose(found, 3 * u / (1 + 2 * u), rtol=1e-12)
    line = described_choice([program], stable, "ddim", OPEN)
    assert "ddim on trailing in eps (grid diffusers keeps the scheduler's own times)" in line
    assert "\n" not in line


def test_no_search_is_offered_for_a_sampler_that_draws_noise(stable):
    drawn, quiet = (chosen_program(stable, solver, 5, OPEN) for solver in ("ddpm", "ddim"))
    assert "pfdiff tune" in described_choice([quiet], stable, "ddim", OPEN)
    assert "pfdiff tune" not in described_choice([quiet, drawn], stable, "ddpm", OPEN)


def test_a_measurement_of_several_nfe_is_said_once():
    network = plain()
    programs = [chosen_program(network, AUTO, nfe, OPEN) for nfe in (4, 8)]
    record = {"complete": True, "calls": 240, "calibration_seeds": 21}
    records = {4: {**record, "seconds": 20.44}, 8: {**record, "seconds": 20.47}}
    line = described_choice(programs, network, AUTO, OPEN, records)
    assert line.startswith("sampler by measurement (240 calls, 21 seeds, 20.5 s): NFE 4 ")
    assert line.count("measurement") == 1


def test_grid_diffusers_is_exact(stable, flow):
    exact = {**OPEN, "grid": "diffusers"}
    program = chosen_program(stable, "ddim", 5, exact)
    assert program.times.tolist() == [801, 601, 401, 201, 1]
    for network in (stable, flow):
        for solver in ("ddim", "pfdiff:k=2,l=1"):
            grid = network.convention.walk(parse_solver(solver), 5)
            assert chosen_program(network, solver, 5, exact).grid == grid


def test_grid_diffusers_ends_where_it_is_told(stable):
    exact = {**OPEN, "grid": "diffusers"}
    for end, last in (("clean", -1), ("first", 0), (-1.0, -1)):
        assert chosen_program(stable, "ddim", 5, {**exact, "end": end}).grid == (801, 601, 401, 201, 1, last)
    for end in (3.0, "middle"):
        with pytest.raises(InputError, match=f"end '?{end}'?: the times of grid 'diffusers' end at clean or first"):
            chosen_program(stable, "ddim", 5, {**exact, "end": end})


def test_a_last_step_of_a_rounding_is_refused():
    """Exponential sigmas of a flow end at its first time, but for 1e-19."""
    convention = read_config({"_class_name": "FlowMatchLCMScheduler", "use_exponential_sigmas": True})
    with pytest.raises(InputError, match="4 times do not fall strictly"):
        replace(convention, end="first").walk(parse_solver("unipc:order=2"), 4)


def test_a_start_with_grid_diffusers_is_the_start(stable):
    """Leading spacing of its own would begin with half of it."""
    assert stable.convention.spacing == "leading"
    found = chosen_program(stable, "ddim", 2, {**OPEN, "grid": "diffusers", "t_start": 600.0})
    assert found.times.tolist()[0] == 600


def test_grid_diffusers_needs_a_scheduler():
    with pytest.raises(InputError, match=r"grid 'diffusers': network 'Plain' has no scheduler; give a rule"):
        chosen_program(plain(), "ddim", 5, {**OPEN, "grid": "diffusers"})


def test_one_evaluation_at_a_clean_time_warns(stable):
    with pytest.warns(UserWarning, match=r"NFE 1 starts from pure noise at time 1 of scaled_linear"):
        chosen_program(stable, "ddim", 1, {**OPEN, "grid": "diffusers"})
    chosen_program(stable, "ddim", 1, OPEN)


def test_a_default_build_is_up_to_date_and_says_what_it_chose(tmp_path):
    network, lines = plain(), []
    with pfdiff.build(network, [4, 8], out=tmp_path / "e", progress=lines.append):
        pass
    assert any(line.startswith("sampler by ") and " on " in line and "pfdiff tune" in line for line in lines)
    before = (tmp_path / "e" / "engine.json").stat().st_mtime_ns
    with pfdiff.build(network, [4, 8], out=tmp_path / "e"):
        pass
    assert (tmp_path / "e" / "engine.json").stat().st_mtime_ns == before
