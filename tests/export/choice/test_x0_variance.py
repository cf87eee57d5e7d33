"""The variances of Analytic-DPM: estimated from a network whose own are known, and kept in the engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pfdiff
from pfdiff.engine.compiler.schedule import parse_schedule
from pfdiff.engine.compiler.solvers import parse_solver
from pfdiff.engine.compiler.solvers.stochastic.analytic import Analytic

from ...gaussian import x0_variance
from ...oracle import Mixture

SHAPE = (2, 16, 16)
TIMES = (999.0, 700.0, 400.0, 100.0)


class Normal(nn.Module):
    """A perfect network of N(0.4, 0.7^2) in every coordinate; predicts eps or v."""

    slope: Tensor
    shift: Tensor

    def __init__(self, schedule: str, prediction: str) -> None:
        super().__init__()
        process, oracle = parse_schedule(schedule), Mixture.of(schedule)
        network = oracle.network(prediction)
        whole = np.arange(process.last + 1)
        shift = np.array([network(0.0, t) for t in whole])
        slope = np.array([network(1.0, t) for t in whole]) - shift
        self.register_buffer("slope", torch.from_numpy(slope).float())
        self.register_buffer("shift", torch.from_numpy(shift).float())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        slope, shift = (table[t.long()][:, None, None, None] for table in (self.slope, self.shift))
        return slope * x + shift


def network(schedule: str = "linear:1000", prediction: str = "v") -> pfdiff.Network:
    return pfdiff.Network(
        Normal(schedule, prediction), shape=SHAPE, schedule=schedule, prediction=prediction, data_range=(-4, 4)
    )


def variances(solver: str) -> list[float]:
    method = parse_solver(solver)
    assert isinstance(method, Analytic)
    assert not method.lacks_variances
    return [float(one) for one in solver.partition("x0_var=")[2].split("/")]


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_estimates_of_a_perfect_network(prediction: str, tmp_path: Path) -> None:
    """128 samples of 512 coordinates: a standard error of 0.6 %, and the 20 evaluations of x_0 err by less."""
    schedule = "linear:1000"
    with pfdiff.build(
        network(schedule, prediction), 4, "analytic-ddpm", grid=(*TIMES, -1), out=tmp_path / "a.engine"
    ) as engine:
        found = variances(engine.programs[4].solver)
    oracle = Mixture.of(schedule)
    # The data's variance is 0.49, and no clip at half the range is in reach.
    np.testing.assert_allclose(found, [x0_variance(oracle, t) for t in TIMES], rtol=0.03)
    assert all(float(f"{one:.4g}") == one for one in found)


def test_the_engine_keeps_them(tmp_path: Path) -> None:
    """Built again nothing is written; PFDiff's are those of its anchors; a seed is one sample in any batch."""
    folder, source = tmp_path / "a.engine", network()
    solvers = {3: "analytic-ddim", 4: "pfdiff:k=2,l=1,base=analytic-ddim"}
    for nfe, solver in solvers.items():
        pfdiff.build(source, nfe, solver, grid="trailing", batch=[1, 4], out=folder).close()
    before = (folder / "engine.json").read_bytes()
    lines: list[str] = []
    with pfdiff.build(
        source, 4, solvers[4], grid="trailing", batch=[1, 4], out=folder, progress=lines.append
    ) as engine:
        assert (folder / "engine.json").read_bytes() == before
        assert any("up to date" in line for line in lines)
        held = json.loads(before)["programs"].values()
        assert [len(variances(one["solver"])) for one in held] == [3, 4]
        x = engine.sample(seeds=range(4), nfe=4).numpy()
        assert np.array_equal(engine.sample(seeds=[2], nfe=4).numpy()[0], x[2])
        oracle, count = Mixture.of("linear:1000"), x.size
        drawn = engine.sample(seeds=range(32), nfe=3).numpy()
    # Exact steps to the last time, 332, and its x_0 as the sample: the mean is right, the variance what x_0 has.
    last = x0_variance(oracle, 332)
    assert drawn.mean() == pytest.approx(0.4, abs=5 * 0.7 / np.sqrt(8 * count))
    assert drawn.var() == pytest.approx(0.49 - last, rel=0.06)


def test_what_cannot_be_estimated_is_refused(tmp_path: Path) -> None:
    class Conditioned(Normal):
        def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().forward(x, t) + 0 * context.sum()

    given = pfdiff.Network(
        Conditioned("linear:1000", "v"),
        shape=SHAPE,
        schedule="linear:1000",
        prediction="v",
        conditions={"context": pfdiff.Condition("context", "float32", (4,))},
    )
    with pytest.raises(pfdiff.InputError, match="the variances of a network with given conditions") as caught:
        pfdiff.build(given, 3, "analytic-ddim", grid="trailing", out=tmp_path / "a.engine")
    assert "\n" not in str(caught.value)
    with pytest.raises(pfdiff.InputError, match="pfdiff build estimates it"):
        pfdiff.compile("analytic-ddim", "linear:1000", 4)
