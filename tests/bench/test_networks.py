"""The benchmark networks have the published parameter counts; the peers' loops are the programs'."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from pfdiff.bench.measuring.gpu_engines import contract_of, module_of
from pfdiff.bench.measuring.networks import CIFAR, LATENTS, PARAMETERS, UNet, parameters
from pfdiff.bench.measuring.peers import (
    DIFFUSERS,
    diffusers_loop,
    diffusers_program,
    numpy_ddim,
    plain_ddim,
    plain_pfdiff,
    plain_program,
)
from pfdiff.engine.compiler.compile import compile
from pfdiff.engine.compiler.program import Program

from ..small.engine import small


@pytest.mark.parametrize("name", ["cifar", "latents"])
def test_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        network = UNet(CIFAR if name == "cifar" else LATENTS)
    assert parameters(network) == PARAMETERS[name]


def test_the_shipped_network_is_measured_without_its_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)  # as where it is not installed
    network = module_of("fashion", "cpu")
    with torch.inference_mode():
        out = network(torch.randn(1, 1, 28, 28), torch.tensor([500.0]), torch.tensor([3]))
    assert out.shape == (1, 1, 28, 28)
    assert out.abs().max() > 0


def test_the_policy_is_as_wide_as_its_paper_says() -> None:
    network = module_of("policy", "cpu")
    contract = contract_of("policy")
    x, observation = torch.randn(2, *contract.shape), torch.randn(2, *contract.conditions[0].shape)
    with torch.inference_mode():
        out = network(x, torch.tensor([1.0, 99.0]), observation)
        other = network(x, torch.tensor([1.0, 99.0]), observation + 1)
    assert out.shape == x.shape
    assert not torch.allclose(out, other)
    assert 60e6 < parameters(network) < 80e6


def test_the_networks_return_the_shape_they_take() -> None:
    narrow = UNet(type(CIFAR)(3, (32, 64), attention=(1,)))
    assert narrow(torch.randn(2, 3, 8, 8), torch.tensor([1.0, 9.0])).shape == (2, 3, 8, 8)
    text = UNet(type(LATENTS)(4, (32, 64), attention=(0,), text=24))
    x, t, words = torch.randn(2, 4, 8, 8), torch.tensor([1.0, 9.0]), torch.randn(2, 7, 24)
    out = text(x, t, words)
    assert out.shape == x.shape
    assert not torch.equal(out, text(x, t, words + 1))
    assert not torch.equal(out, text(x, t + 5, words))


def drawn(loop: Any, sampler: Program, z: torch.Tensor) -> torch.Tensor:
    return loop(lambda x, t: small(x, t), sampler, torch.float32, ())(z)


def assert_close(x: Any, expected: torch.Tensor) -> None:
    assert (torch.as_tensor(x) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.fixture
def z() -> torch.Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("schedule", ["linear:1000", "scaled_linear:1000"])
def test_peers_draw_the_programs_samples(prediction: str, schedule: str, z: torch.Tensor) -> None:
    ddim = compile("ddim", schedule, 5, grid="trailing", prediction=prediction)
    expected = ddim.evaluate(small, z.double())
    for loop in (plain_ddim, plain_program):
        assert_close(drawn(loop, ddim, z), expected)
    pfdiff = compile("pfdiff:k=2,l=1", schedule, 5, grid="uniform", basis="eps", prediction=prediction)
    assert_close(drawn(plain_pfdiff, pfdiff, z), pfdiff.evaluate(small, z.double()))

    class Session:
        def run(self, _: None, feed: dict[str, Any]) -> list[Any]:
            assert feed["time"].dtype == np.float32
            return [small(torch.from_numpy(feed["sample"]), feed["time"]).numpy()]

    assert_close(numpy_ddim(Session(), ddim, ["sample", "time"], [])(z.numpy()), expected)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("solver", list(DIFFUSERS))
def test_diffusers_draws_the_programs_samples(solver: str, prediction: str, z: torch.Tensor) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    sampler = diffusers_program(solver, "linear:1000", 5, prediction)
    assert_close(drawn(diffusers_loop, sampler, z), sampler.evaluate(small, z.double()))
