"""The benchmark networks have the published parameter counts; the peers' loops are the programs'."""

from __future__ import annotations

import pytest
import torch

from pfdiff.bench.networks import CIFAR, LATENTS, PARAMETERS, UNet, parameters
from pfdiff.bench.peers import diffusers_ddim, has_diffusers, plain_ddim, plain_program
from pfdiff.engine.program import compile

from .small_engine import small


@pytest.mark.parametrize("name", ["cifar", "latents"])
def test_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        network = UNet(CIFAR if name == "cifar" else LATENTS)
    assert parameters(network) == PARAMETERS[name]


def test_the_networks_return_the_shape_they_take() -> None:
    narrow = UNet(type(CIFAR)(3, (32, 64), attention=(1,)))
    assert narrow(torch.randn(2, 3, 8, 8), torch.tensor([1.0, 9.0])).shape == (2, 3, 8, 8)
    text = UNet(type(LATENTS)(4, (32, 64), attention=(0,), text=24))
    x, t, words = torch.randn(2, 4, 8, 8), torch.tensor([1.0, 9.0]), torch.randn(2, 7, 24)
    out = text(x, t, words)
    assert out.shape == x.shape
    assert not torch.equal(out, text(x, t, words + 1))
    assert not torch.equal(out, text(x, t + 5, words))


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("schedule", ["linear:1000", "scaled_linear:1000"])
def test_peers_draw_the_programs_samples(prediction: str, schedule: str) -> None:
    program = compile("ddim", schedule, 5, grid="trailing", prediction=prediction)
    z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    expected = program.evaluate(small, z.double())
    loops = [plain_ddim, plain_program, *([diffusers_ddim] if has_diffusers() else [])]
    for loop in loops:
        x = loop(lambda x, t: small(x, t), program, torch.float32, ())(z)
        error = (x - expected).abs().max() / expected.abs().max()
        assert error < (0.02 if loop is diffusers_ddim else 1e-4), loop.__name__
