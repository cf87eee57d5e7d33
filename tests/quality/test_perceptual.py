"""Layers that see what pixels do not, the pull of a distribution, and descent through a module."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

import pfdiff
from pfdiff.engine.contract.contract import Contract
from pfdiff.engine.errors import InputError
from pfdiff.quality.distances.metrics import FrechetDistance
from pfdiff.quality.perceptual.frechet_pull import FrechetPull
from pfdiff.quality.perceptual.layers import filter_bank, together
from pfdiff.quality.perceptual.named import layers_of
from pfdiff.quality.refining.aim import Aim
from pfdiff.quality.refining.dense import table_of
from pfdiff.quality.refining.descend import Descent, Plan
from pfdiff.quality.refining.through_module import ThroughModule

CONTRACT = Contract("small", (1, 8, 8), "linear:1000", "v", time_dtype="float32", conditions=())


class Small(nn.Module):
    """A smooth network of the time and of the neighbours; forward(x [B, 1, 8, 8], t [B])."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inner = nn.Conv2d(1, 8, 3, padding=1)
        self.outer = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        bent = torch.tanh(self.inner(x) + torch.sin(t / 300)[:, None, None, None])
        return self.outer(bent) + 0.5 * x


# Layers.
def test_the_filter_bank_sees_a_blur_that_pixels_hardly_do():
    x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    blurred = functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    moved = x + (blurred - x).square().mean().sqrt() * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    bank = filter_bank(1)
    means = [bank(one)[-1].mean(0) for one in (x, blurred, moved)]
    assert (means[1] - means[0])[0] < -0.2 * means[0][0]  # energy is gone where the sample is blurred
    assert (means[2] - means[0])[0] > 0  # as much noise adds some


def test_layers_of_several_have_all_features_at_the_end():
    both = together([filter_bank(1), layers_of("fashion", Contract("f", (1, 28, 28), "linear:1000", "v"))])
    x = torch.zeros(2, 1, 28, 28)
    assert both(x)[-1].shape == (2, 27 + 128)
    assert both.differentiable


def test_onnx_layers_are_those_of_the_module(tmp_path):
    weights = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)
    tensor = onnx.numpy_helper.from_array(weights, "weights")
    nodes = [
        onnx.helper.make_node("Flatten", ["x"], ["flat"]),
        onnx.helper.make_node("MatMul", ["flat", "weights"], ["features"]),
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", ["n", 1, 8, 8]), ("features", ["n", 5]))
    ]
    graph = onnx.helper.make_graph(nodes, "judge", ends[:1], ends[1:], [tensor])
    path = tmp_path / "judge.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), path)
    found = layers_of(str(path), CONTRACT, (0.0, 1.0))
    x = torch.rand(3, 1, 8, 8) * 2 - 1
    exact = ((x + 1) / 2).flatten(1).numpy() @ weights
    np.testing.assert_allclose(found(x)[-1].numpy(), exact, atol=1e-4)
    assert not found.differentiable


@pytest.mark.parametrize(
    ("source", "shape", "match"),
    [
        ("fashion", (3, 8, 8), "take samples of 1x28x28"),
        ("nothing", (1, 8, 8), "unknown|no layers"),
        ("filters", (7,), r"need samples \[C, H, W\]"),
    ],
)
def test_features_that_do_not_fit_are_refused(source, shape, match):
    with pytest.raises(InputError, match=match):
        layers_of(source, Contract("c", shape, "linear:1000", "v"))


# The pull.
def test_the_pull_is_the_slope_of_the_distance():
    generator = np.random.default_rng(0)
    real, ours = generator.standard_normal((400, 5)) * [1, 2, 1, 3, 1], generator.standard_normal((3000, 5)) + 0.3
    pull = FrechetPull(real)
    pull.add(ours)
    direction = generator.standard_normal(ours.shape)
    step = 1e-5
    slope = (pull.distance_of(ours + step * direction) - pull.distance_of(ours - step * direction)) / (2 * step)
    assert np.mean(np.sum(pull.gradient(ours) * direction, 1)) == pytest.approx(slope, rel=0.01)


def test_the_distance_is_torchmetrics():
    pytest.importorskip("torchmetrics")
    generator = np.random.default_rng(1)
    real, ours = (generator.standard_normal((500, 6)) + shift for shift in (0, 0.5))
    exact = FrechetDistance((real / real.std(0)).astype(np.float32))((ours / real.std(0)).astype(np.float32))
    assert FrechetPull(real).distance_of(ours) == pytest.approx(exact, rel=1e-3)


# Descent.
def through(seeds: int, nfe: int = 3) -> ThroughModule:
    program = pfdiff.compile("ddim", "linear:1000", nfe, "trailing", prediction="v")
    module = Small().eval()
    for one in module.parameters():
        one.requires_grad_(False)
    noise = torch.from_numpy(pfdiff.noise(range(seeds), (1, 8, 8)).numpy())
    return ThroughModule(module, CONTRACT, program, noise, [])


def test_gradients_are_those_of_differences():
    run = through(6)
    run.module.double()
    run.noise = run.noise.double()
    table = torch.from_numpy(table_of(run.program)).requires_grad_()
    times = torch.from_numpy(run.program.times.copy()).requires_grad_()
    rows = torch.arange(6)
    loss = run.run(table, times, rows).square().sum()
    loss.backward()
    assert table.grad is not None
    assert times.grad is not None
    for place, step in (((2, 1), 1e-3), ((3, 3), 1e-3), ((0, 0), 1e-3)):
        up, down = table.detach().clone(), table.detach().clone()
        up[place] += step
        down[place] -= step
        with torch.no_grad():
            ends = [run.run(one, times, rows).square().sum() for one in (up, down)]
        assert float(table.grad[place]) == pytest.approx(float(ends[0] - ends[1]) / (2 * step), rel=2e-2)
    later, earlier = times.detach().clone(), times.detach().clone()
    later[1] += 5
    earlier[1] -= 5
    with torch.no_grad():
        ends = [run.run(table, one, rows).square().sum() for one in (later, earlier)]
    assert float(times.grad[1]) == pytest.approx(float(ends[0] - ends[1]) / 10, rel=5e-2)


def test_checkpoints_change_no_gradient():
    gradients = []
    for checkpointed in (False, True):
        run = through(4)
        run.checkpointed = checkpointed
        table = torch.from_numpy(table_of(run.program)).requires_grad_()
        run.run(table, torch.from_numpy(run.program.times.copy()), torch.arange(4)).square().sum().backward()
        assert table.grad is not None
        gradients.append(table.grad.numpy())
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-7)


def test_descent_lowers_the_error_and_goes_on_where_it_was():
    run = through(96)
    exact = pfdiff.compile("unipc:order=2", "linear:1000", 60, "angle:power=1.5", prediction="v")
    many = ThroughModule(run.module, CONTRACT, exact, run.noise, [])
    with torch.no_grad():
        start = torch.from_numpy(exact.times.copy())
        targets = many.run(torch.from_numpy(table_of(exact)), start, torch.arange(96))
    aim, watched = Aim(targets, (-np.inf, np.inf)), torch.arange(64, 96)

    def judge(program: pfdiff.Program) -> float:
        with torch.no_grad():
            x = run.run(torch.from_numpy(table_of(program)), torch.from_numpy(program.times.copy()), watched)
        return aim.value(x, watched)

    held: list[dict] = []
    program, state = Descent(run, aim, np.arange(64), judge, Plan(steps=20, batch=16, metric_seeds=8)).run(
        keep=held.append
    )
    assert min(state.checks) < 0.5 * state.checks[0]
    assert np.all(program.times == np.rint(program.times))
    again, _ = Descent(run, aim, np.arange(64), judge, Plan(steps=20, batch=16, metric_seeds=8)).run(held[0])
    np.testing.assert_allclose(table_of(again), table_of(program), rtol=1e-4, atol=1e-5)
