"""Networks with a diffusers scheduler: `compare` and `tune` begin with the sampler that `build` takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import pfdiff
from pfdiff.engine.compiler.defaults import AUTO, by_rule
from pfdiff.export.choice.sampler_choice import chosen_program
from pfdiff.quality.sampling.subject import Subject
from pfdiff.quality.search.candidates import (
    Candidate,
    all_candidates,
    behaviour,
    by_default,
    default_candidate,
    make_setting,
)

from .analytic import SCHEDULE, Analytic

pytest.importorskip("diffusers")
OPEN: dict[str, Any] = {"grid": None, "basis": None, "clip": None, "t_start": None, "end": None}
FEW: dict[str, Any] = {"seeds": 2, "reference": 12, "conditions": {"prompt_embeds": np.zeros((77, 8), np.float32)}}


@pytest.fixture(scope="module")
def networks() -> dict[str, pfdiff.Network]:
    """Small pipelines: leading spacing with an offset, flow at shift 3, and a scheduler that draws noise."""
    from diffusers.schedulers.scheduling_lcm import LCMScheduler

    from ..small.diffusers import FAMILIES, pipeline_of

    distilled = pipeline_of(FAMILIES["sd1"])
    distilled.scheduler = LCMScheduler.from_config(distilled.scheduler.config)
    plain = {name: pfdiff.Network(pipeline_of(FAMILIES[name])) for name in ("sd1", "sd3")}
    return {**plain, "lcm": pfdiff.Network(distilled)}


@pytest.mark.parametrize("name", ["sd1", "sd3"])
@pytest.mark.parametrize("nfe", [4, 8])
def test_the_default_is_what_build_takes(networks, name, nfe):
    network = networks[name]
    setting = make_setting(Subject.of(network), nfe, None, None, None)
    built = chosen_program(network, AUTO, nfe, OPEN)
    for candidate in (default_candidate(setting), next(iter(all_candidates(setting)))):
        assert same(candidate.compile(setting), built)
    for solver, grid in (("ddim", None), ("dpm++:2m", "diffusers")):
        built = chosen_program(network, solver, nfe, {**OPEN, "grid": grid})
        asked = by_default(Candidate(solver, grid or AUTO, None, None), setting)
        assert same(asked.compile(setting), built)


def same(one: pfdiff.Program, other: pfdiff.Program) -> bool:
    """But for a start that is said or left open."""
    return (one.solver, one.basis) == (other.solver, other.basis) and behaviour(one) == behaviour(other)


def with_scheduler(name: str, **options: Any) -> pfdiff.Network:
    """The small U-Net without conditions."""
    import diffusers

    from ..small.diffusers import FAMILIES, pipeline_of

    pipeline = pipeline_of(FAMILIES["unet"])
    pipeline.scheduler = getattr(diffusers, name)(**options)
    return pfdiff.Network(pipeline)


def test_own_times_above_the_default_start_are_kept():
    """Squared cosines end at an alpha near 0, where eps-networks of their own start later: diffusers' do not."""
    network = with_scheduler("EulerDiscreteScheduler", beta_schedule="squaredcos_cap_v2", use_karras_sigmas=True)
    setting = make_setting(Subject.of(network), 4, None, None, None)
    assert setting.t_start < 999
    built = chosen_program(network, AUTO, 4, OPEN)
    assert built.times[0] == 999
    assert same(default_candidate(setting).compile(setting), built)
    (point,) = pfdiff.compare(network, 4, ["ddim@diffusers"], seeds=2, reference=12).points
    assert point.program is not None
    assert point.program.times.tolist() == built.times.tolist()
    setting = make_setting(Subject.of(network), 4, None, 800.0, None)
    assert default_candidate(setting).compile(setting).times[0] == 800


@pytest.mark.parametrize(
    ("name", "options", "nfe", "why"),
    [
        ("LCMScheduler", {"rescale_betas_zero_snr": True}, 4, "eps does not determine v at time 999"),
        ("LCMScheduler", {}, 60, "distilled on 50 times"),
    ],
)
def test_where_build_refuses_the_search_begins_with_the_rule(name, options, nfe, why):
    network = with_scheduler(name, **options)
    with pytest.raises(pfdiff.InputError, match=why):
        chosen_program(network, AUTO, nfe, OPEN)
    setting = make_setting(Subject.of(network), nfe, None, None, None)
    found = default_candidate(setting)
    assert found.solver == by_rule(setting.schedule, setting.prediction, nfe).solver
    found.compile(setting)
    (point,) = pfdiff.compare(network, nfe, ["auto"], seeds=1, reference=72).points
    assert (point.error, why in point.note) == (None, True)


def test_unknown_grids_are_refused_before_the_network_is_asked(monkeypatch, networks):
    monkeypatch.setattr(Subject, "opened", None)
    network, bare = networks["sd1"], pfdiff.Network(Analytic(), shape=(1, 2, 2), schedule=SCHEDULE, prediction="eps")
    for one, grid, why in (
        (network, "trailng", "unknown grid 'trailng'.*did you mean trailing"),
        (network, "karras:roh=3", "grid karras has no parameter 'roh'"),
        (bare, "diffusers", "grid 'diffusers': network 'Analytic' has no scheduler; give a rule: trailing"),
    ):
        with pytest.raises(pfdiff.InputError, match=why):
            pfdiff.compare(one, 4, ["ddim", f"ddim@{grid}"], conditions=FEW["conditions"])
        with pytest.raises(pfdiff.InputError, match=why):
            pfdiff.tune(one, 4, grids=["trailing", grid], conditions=FEW["conditions"])


def test_a_search_takes_the_times_of_the_scheduler(networks):
    setting = make_setting(Subject.of(networks["sd1"]), 4, None, None, None)
    (found,) = all_candidates(setting, solvers=["ddim"], grids=["diffusers"], bases=["x0"])
    assert found.compile(setting).times.tolist() == [751, 501, 251, 1]
    assert not list(all_candidates(replace(setting, nfe=1001), solvers=["ddim"], grids=["diffusers"], bases=["x0"]))


def test_consistency_models_have_a_reference_that_stops_early():
    network = with_scheduler("CMStochasticIterativeScheduler")
    points = pfdiff.compare(network, 2, ["ddim@trailing", "ddim@uniform", "auto"], seeds=1, reference=12).points
    assert points[0].error is not None
    assert "gives x_t itself at time 0.002" in points[1].note
    assert "draws noise" in points[2].note


def test_a_lower_start_is_kept(networks):
    for name, start in (("sd1", 700.0), ("sd3", 0.7)):
        setting = make_setting(Subject.of(networks[name]), 4, None, start, None)
        assert default_candidate(setting).compile(setting).times[0] <= start


def test_where_the_scheduler_draws_noise_the_search_begins_with_the_rule(networks):
    network = networks["lcm"]
    assert chosen_program(network, AUTO, 4, OPEN).noises
    setting = make_setting(Subject.of(network), 4, None, None, None)
    rule = by_rule(setting.schedule, setting.prediction, 4)
    assert default_candidate(setting).solver == rule.solver
    (point,) = pfdiff.compare(network, 4, ["auto"], **FEW).points
    assert point.error is None
    assert "noise" in point.note


def test_compare_asks_the_times_of_the_engine(networks):
    network = networks["sd1"]
    found = pfdiff.compare(network, 4, ["auto", "ddim@diffusers"], **FEW).points
    auto, exact = (point.program.times.tolist() for point in found if point.program is not None)
    assert auto == chosen_program(network, AUTO, 4, OPEN).times.tolist()
    assert exact == [751, 501, 251, 1]


@pytest.mark.parametrize("name", ["sd1", "lcm"])
def test_a_distance_is_measured_of_the_default_first(networks, name):
    """With a budget for three candidates of hundreds; the sampler that draws noise too."""
    network, asked = networks[name], []

    def cost(engine, nfe, seeds):
        asked.append(engine.programs[nfe])
        return 1.0

    words = {"calibration": 2, "held_out": 0, "budget": 24, "conditions": FEW["conditions"]}
    pfdiff.tune(network, 4, criterion=cost, **words)
    assert same(asked[0], chosen_program(network, AUTO, 4, OPEN))


def test_a_latest_start_serves_where_the_scheduler_has_too_few_times():
    network = with_scheduler("LCMScheduler", original_inference_steps=4)
    setting = make_setting(Subject.of(network), 8, None, 600.0, None)
    built = chosen_program(network, AUTO, 8, {**OPEN, "t_start": 600.0})
    assert same(by_default(Candidate(AUTO, AUTO, None, None), setting).compile(setting), built)
