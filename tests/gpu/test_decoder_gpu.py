"""The decoder of a latent model on a real GPU: in the same captured graph as the schedule, one launch a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pfdiff.engine.api import Engine
from pfdiff.engine.artifact import Artifact
from pfdiff.engine.backends.abstract import CudaOptions
from pfdiff.engine.contract.contract import DecoderContract
from pfdiff.engine.runtime.cuda.loop import CudaLoop
from pfdiff.kernels import eager

from ..small.cuda import calls_of_one_launch
from ..small.engine import CONTRACT, SHAPE, Small, program

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs an NVIDIA GPU with a driver and a CUDA build of torch"
    ),
]
PRECISIONS = [("fp32", "fp32"), ("fp16", "fp16"), ("fp16", "fp32")]  # of network and decoder


class Upsampler(nn.Module):
    """[B, 2, 3, 5] -> [B, 3, 6, 10]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 12, 3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.tanh(nn.functional.pixel_shuffle(self.conv(latents), 2))


def latent_engine(network: str, decoder: str, *, graph: bool = True) -> Engine:
    contract = replace(CONTRACT, precision=network)
    described = DecoderContract("up", SHAPE, (3, 6, 10), precision=decoder)
    artifact = Artifact(Path("small"), contract, (1, 8), network, {6: program(6, contract)}, decoder=described)
    options = CudaOptions(graph=graph, compile=False)
    modules = {"module": Small(), "decoder_module": Upsampler()}
    return Engine.open(artifact, device="cuda", backend="torch", options=options, **modules)


@pytest.mark.parametrize(("network", "decoder"), PRECISIONS)
def test_replay_equals_the_launches_and_the_decoded_samples(network: str, decoder: str) -> None:
    with latent_engine(network, decoder) as captured, latent_engine(network, decoder, graph=False) as plain:
        for seeds in ([5], range(8), range(11)):
            pixels = captured.images(seeds=seeds, label=3)
            assert torch.equal(pixels, captured.images(seeds=seeds, label=3))
            assert torch.equal(pixels, plain.images(seeds=seeds, label=3))
            latents = captured.sample(seeds=seeds, label=3)
            assert latents.shape == (len(pixels), *SHAPE)
            images = Upsampler().cuda()(latents).detach()
            wanted = torch.empty_like(pixels)
            eager.images(wanted, images, -1.0, 1.0)
            levels = 1 if decoder == "fp32" else 2
            assert (pixels.int() - wanted.int()).abs().max() <= levels
        assert captured.execution == "one CUDA graph a batch"


def test_images_take_one_launch_of_a_graph() -> None:
    with latent_engine("fp16", "fp32") as engine:
        calls_of_one_launch(lambda: engine.images(seeds=range(8), label=1))


def test_poison_between_replays_changes_nothing() -> None:
    with latent_engine("fp16", "fp16") as engine:
        first = engine.images(seeds=range(8), label=2)
        engine._session.wait()
        loop = engine._session._loop
        assert isinstance(loop, CudaLoop)
        for sampler in loop._held.values():
            for buffer in (sampler.static.states, sampler.static.noise, sampler.static.y_in):
                if buffer is not None:
                    buffer.fill_(torch.nan)
            assert sampler.decode is not None
            sampler.result.fill_(99)
        torch.cuda.synchronize()
        assert torch.equal(engine.images(seeds=range(8), label=2), first)
