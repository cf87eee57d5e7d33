"""The bounded measurement: what it chooses, what it costs, what an engine remembers of it."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pfdiff
from pfdiff.engine.compiler.defaults import AUTO
from pfdiff.export.choice import measured_choice, meter
from pfdiff.export.choice.measured_choice import measured
from pfdiff.export.choice.meter import CALLS

CALLED: Counter[str] = Counter()


class Modes(nn.Module):
    """The exact eps of far-apart Gaussians in 16 dimensions on linear:1000; counts its calls."""

    means: torch.Tensor
    alphas: torch.Tensor

    def __init__(self, deviation: float = 0.15) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.register_buffer("means", torch.randn(6, 16, generator=generator))
        betas = np.linspace(1e-4, 0.02, 1000)
        self.register_buffer("alphas", torch.from_numpy(np.sqrt(np.cumprod(1 - betas))).float())
        self.deviation = deviation

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        CALLED["forward"] += 1
        alpha = self.alphas[t.long()][:, None]
        variance = alpha**2 * self.deviation**2 + 1 - alpha**2
        away = x[:, None] - alpha[..., None] * self.means
        share = torch.softmax(-(away**2).sum(2) / (2 * variance), 1)
        x_0 = (share[..., None] * (self.means + (alpha * self.deviation**2 / variance)[..., None] * away)).sum(1)
        return (x - alpha * x_0) / (1 - alpha**2).sqrt()


@pytest.fixture(autouse=True)
def _no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the number of seeds does not depend on how busy the machine is."""

    class Clock:
        monotonic = staticmethod(lambda: 0.0)

    monkeypatch.setattr(meter, "time", Clock)


def network(module: nn.Module | None = None) -> pfdiff.Network:
    return pfdiff.Network(module or Modes(), shape=(16,), schedule="linear:1000", prediction="eps", name="modes")


def rule(*counts: int) -> dict[int, pfdiff.Program]:
    return {nfe: pfdiff.compile(AUTO, "linear:1000", nfe) for nfe in counts}


def rms(program: pfdiff.Program, source: pfdiff.Network, noise: torch.Tensor, truth: torch.Tensor) -> float:
    return float((program.evaluate(source.evaluate, noise) - truth).square().mean().sqrt())


def test_it_takes_the_rival_that_is_nearer_where_the_rule_is_behind():
    """Modes that are decided in the noisiest steps; judged on other seeds, by DDIM over all 1,000 times."""
    source, counts = network(), (5, 8)
    found = measured(source, rule(*counts))
    noise = torch.from_numpy(pfdiff.noise(range(300), (16,)).numpy())
    truth = pfdiff.compile("ddim", "linear:1000", 1000).evaluate(source.evaluate, noise)
    for nfe, by_rule in rule(*counts).items():
        chosen = found[nfe].program
        assert chosen.digest != by_rule.digest
        assert rms(chosen, source, noise, truth) < 0.95 * rms(by_rule, source, noise, truth)
        ddim = [pfdiff.compile("ddim", "linear:1000", nfe, grid) for grid in ("uniform", "trailing", "logsnr")]
        assert rms(chosen, source, noise, truth) <= 1.05 * min(rms(one, source, noise, truth) for one in ddim)


class Untrained(nn.Module):
    """Random weights: an x0 that says nothing of x, on which no sampler but DDIM is at home."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sizes = ((3, 32), (32, 32), (32, 2))
        self.weights = nn.ParameterList(torch.randn(*one, generator=generator) / one[0] ** 0.5 for one in sizes)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        y = torch.cat([x, t.float().reshape(-1, 1) / 1000], 1)
        for weight in self.weights[:-1]:
            y = nn.functional.silu(y @ weight)
        return y @ self.weights[-1]


@pytest.mark.parametrize("seed", range(3))
def test_an_untrained_x0_network_is_never_behind_ddim(seed):
    """Errors there are far below those of even times in eps, which once were the reference."""
    schedule, counts = "cosine:1000", (4, 6, 10)
    source = pfdiff.Network(Untrained(seed), shape=(2,), schedule=schedule, prediction="x0", name="untrained")
    by_rule = {nfe: pfdiff.compile(AUTO, schedule, nfe, prediction="x0") for nfe in counts}
    found = measured(source, by_rule)
    noise = torch.from_numpy(pfdiff.noise(range(100), (2,)).numpy())
    truth = pfdiff.compile("ddim", schedule, 1000, prediction="x0").evaluate(source.evaluate, noise)
    for nfe in counts:
        grids = ("uniform", "trailing", "logsnr")
        ddim = [pfdiff.compile("ddim", schedule, nfe, grid, prediction="x0") for grid in grids]
        nearest = min(rms(one, source, noise, truth) for one in ddim)
        assert rms(found[nfe].program, source, noise, truth) <= 1.05 * nearest


class Oscillating(nn.Module):
    """An x0 that varies fast in x and t, as sines of random waves."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        waves = torch.randn(9, 64, generator=generator) * 0.2
        phases = torch.rand(64, generator=generator) * 6.28
        heights = torch.randn(64, 8, generator=generator) * 0.175
        self.parts = nn.ParameterList([waves, phases, heights])

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        waves, phases, heights = self.parts
        return (torch.cat([x, t.reshape(-1, 1)], 1) @ waves + phases).sin() @ heights


@pytest.mark.parametrize("seed", [3, 7])
def test_an_oscillating_network_has_ddim_on_its_best_grid(seed):
    """The grids that are best here are tried with the calls that are left, and judged by a finer reference."""
    source = pfdiff.Network(Oscillating(seed), shape=(8,), schedule="flow", prediction="x0", name="oscillating")
    noise = torch.from_numpy(pfdiff.noise(range(300), (8,)).numpy())
    truth = pfdiff.compile("heun", "flow", 200, "uniform", prediction="x0").evaluate(source.evaluate, noise)
    words: dict[str, Any] = {"schedule": "flow", "nfe": 10, "prediction": "x0"}
    chosen = measured(source, {10: pfdiff.compile(AUTO, **words)})[10]
    assert chosen.record["reference"]["nfe"] == 144
    starts = (1.0, 1 - 0.01, 1 - 0.03, 1 - 0.08)
    grids = [(grid, 1.0) for grid in ("uniform", "trailing", "leading", "quadratic")]
    grids += [(grid, start) for grid in ("logsnr", "karras", "karras:rho=3", "quadratic") for start in starts[1:]]
    ddim = [pfdiff.compile("ddim", grid=grid, t_start=start, **words) for grid, start in grids]
    assert rms(chosen.program, source, noise, truth) <= 1.05 * min(rms(one, source, noise, truth) for one in ddim)


def test_calls_are_timed_by_the_quickest(monkeypatch):
    """A busy machine: single calls take a hundred times as long, which once left two seeds and two samplers."""
    now, calls = [0.0], [0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now[0]

    class Uneven(Modes):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            calls[0] += 1
            now[0] += 0.3 if calls[0] % 3 == 2 else 0.003
            return super().forward(x, t)

    source = network(Uneven())
    monkeypatch.setattr(meter, "time", Clock)
    now[0], calls[0] = 0.0, 0
    record = measured(source, rule(5))[5].record
    assert record["calibration_seeds"] == 256
    assert len(record["ranking"]) == 1 + len(measured_choice.RIVALS)


def test_the_record_has_the_choice_and_its_error():
    record = measured(network(), rule(6))[6].record
    best = record["ranking"][0]
    assert best["error"] == min(one["error"] for one in record["ranking"])
    assert record["nfe"] == 6
    assert record["calls"] <= CALLS
    json.dumps(record, allow_nan=False)


def test_no_more_calls_than_the_bound_whatever_is_asked():
    """Many NFE: those that the calls do not pay for are left to the rule."""
    source = network()  # which is called once, to be described
    CALLED.clear()
    found = measured(source, rule(*range(4, 44)))
    assert CALLED["forward"] <= CALLS
    assert found[4].record["complete"]
    assert not found[43].record["complete"]
    assert found[43].program.digest == rule(43)[43].digest


def test_a_slow_network_keeps_the_rule(monkeypatch):
    now = [0.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now[0]

    class Slow(Modes):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            now[0] += 9.0
            return super().forward(x, t)

    monkeypatch.setattr(meter, "time", Clock)
    source = network(Slow())
    now[0] = 0.0
    [found] = measured(source, rule(5)).values()
    assert not found.record["complete"]
    assert found.program.digest == rule(5)[5].digest
    assert now[0] <= meter.SECONDS + 9.0  # the call in progress is finished


def test_samples_that_are_not_finite_are_never_chosen():
    class Breaks(Modes):
        """NaN at every time that the rule asks for, but for the first, and that no rival does."""

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            bad = torch.tensor(by_rule.times[1:]).float()
            return torch.where(torch.isin(t, bad)[:, None], math.nan, super().forward(x, t))

    by_rule = rule(6)[6]
    result = measured(network(Breaks()), {6: by_rule})[6]
    assert result.program.digest != by_rule.digest
    assert result.record["ranking"][0]["error"] is not None


def test_an_engine_remembers_what_was_measured(tmp_path: Path):
    source, out = network(), tmp_path / "modes.engine"
    lines: list[str] = []
    with pfdiff.build(source, [5, 8], out=out, progress=lines.append) as engine:
        solvers = {nfe: one.solver for nfe, one in engine.programs.items()}
    assert any(line.startswith("sampler by measurement (") for line in lines)
    record: dict[str, Any] = json.loads((out / "engine.json").read_text())["provenance"]["search"]["5"]
    assert record["ranking"][0]["solver"] == solvers[5]
    before = (out / "engine.json").stat().st_mtime_ns
    CALLED.clear()
    lines.clear()
    with pfdiff.build(source, [5, 8], out=out, progress=lines.append):
        pass
    assert CALLED["forward"] == 0
    assert (out / "engine.json").stat().st_mtime_ns == before
    assert any("by measurement, when this engine was built" in line for line in lines)


@pytest.mark.parametrize("given", [{"grid": "trailing"}, {"t_start": 900.0}, {"basis": "eps"}, {"solver": "ddim"}])
def test_what_is_given_is_not_measured(given, tmp_path):
    CALLED.clear()
    lines: list[str] = []
    with pfdiff.build(network(), 5, out=tmp_path / "e", progress=lines.append, **given):
        pass
    assert not [line for line in lines if "measurement" in line]


class Labelled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.modes = Modes()

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        seen.update(label.tolist())
        return self.modes(x, t)


class Prompted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.modes = Modes()

    def forward(self, x: torch.Tensor, t: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        return self.modes(x, t) + prompt.mean()


seen: set[int] = set()


def test_every_class_takes_part_and_what_has_no_typical_value_leaves_the_rule():
    label = pfdiff.Condition("label", "int64", low=0, high=4)
    classes = pfdiff.Network(
        Labelled(), shape=(16,), schedule="linear:1000", prediction="eps", conditions={"label": label}
    )
    seen.clear()
    assert measured(classes, rule(5))
    assert seen == {0, 1, 2, 3, 4}
    prompt = pfdiff.Condition("prompt", "float32", (3, 4))
    prompts = pfdiff.Network(
        Prompted(), shape=(16,), schedule="linear:1000", prediction="eps", conditions={"prompt": prompt}
    )
    assert measured(prompts, rule(5)) == {}
