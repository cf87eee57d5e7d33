"""A decoder inside the captured graph, on CPU tensors with CUDA's streams and graphs replaced by notes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pfdiff.engine.backends.abstract import NetworkFiles
from pfdiff.engine.backends.torch_cuda import TorchCuda
from pfdiff.engine.contract.contract import DecoderContract
from pfdiff.engine.errors import BackendError
from pfdiff.engine.runtime.cuda.batch import BatchKind, bytes_needed
from pfdiff.engine.runtime.decoder import LoadedDecoder
from pfdiff.engine.runtime.noise import noise
from pfdiff.kernels import eager

from ...small.cuda_loop import CPU, PLAIN, Notes, draw, loop_of, noted, tables
from ...small.engine import SHAPE, program, small


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Notes:
    return noted(monkeypatch)


# A latent model's decoder.
def decode(latents: torch.Tensor) -> torch.Tensor:
    """[B, 2, 3, 5] -> [B, 3, 6, 10]: both channels and their mean, twice as large."""
    return torch.cat((latents, latents.mean(1, keepdim=True)), 1).repeat_interleave(2, 2).repeat_interleave(2, 3) / 2


def decoder_of(function: Any = decode, precision: str = "fp32") -> LoadedDecoder:
    contract = DecoderContract("twice", SHAPE, (3, 6, 10), precision=precision)
    return LoadedDecoder(TorchCuda(NetworkFiles(Path("none"), contract, function), CPU), contract)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_decoder_runs_inside_the_graph_after_the_last_step(precision: str, cuda: Notes) -> None:
    def evaluate(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        cuda.append("network")
        return small(x, t)

    def decoding(latents: torch.Tensor) -> torch.Tensor:
        cuda.append(f"decoder {latents.dtype}")
        return decode(latents)

    loop, held = loop_of(cuda, evaluate, decoder_of(decoding, precision)), tables()
    first = draw(loop, held, pixels=True)
    cuda.clear()
    assert torch.equal(draw(loop, held, pixels=True), first)
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[precision]
    assert cuda == ["event", "wait", "replay", *["network"] * 4, f"decoder {dtype}", "event", "wait"]
    wanted = torch.empty_like(first)
    images = decode(program(4, PLAIN).evaluate(small, noise(range(3), SHAPE)).to(dtype)).float()
    eager.images(wanted, images, *PLAIN.data_range)
    assert (first.int() - wanted.int()).abs().max() <= 1
    latents = draw(loop, held)
    assert torch.allclose(latents, program(4, PLAIN).evaluate(small, noise(range(3), SHAPE)), rtol=1e-5, atol=1e-5)
    assert cuda.count(f"decoder {dtype}") == 1  # samples are not decoded


def test_images_that_are_not_finite(cuda: Notes) -> None:
    loop = loop_of(cuda, decoder=decoder_of(lambda latents: decode(latents) / 0))
    with pytest.raises(BackendError, match="the decoder's images are not finite in fp32; check its weights and its sc"):
        draw(loop, tables(), pixels=True)


def test_a_decoder_that_cannot_be_captured(cuda: Notes) -> None:
    decoder = decoder_of()
    decoder.backend.not_capturable = "its library says no"
    loop = loop_of(cuda, decoder=decoder)
    draw(loop, tables())
    assert loop.execution == "one CUDA graph a batch"
    with pytest.warns(RuntimeWarning, match=r"cannot be captured in a CUDA graph \(its library says no\)"):
        draw(loop, tables(), pixels=True)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_decoders_buffers_are_counted(precision: str, cuda: Notes) -> None:
    decoder, held = decoder_of(precision=precision), tables()
    plain = bytes_needed(held, PLAIN, BatchKind(1, True, False), torch.float32, decoder)
    pixels = bytes_needed(held, PLAIN, BatchKind(1, True, True), torch.float32, decoder)
    converted = 2 * (30 + 180) if precision == "fp16" else 0  # latents and image in its own dtype
    assert pixels - plain == 180 + 4 * 180 + converted
    loop = loop_of(cuda, decoder=decoder)
    loop._backend.bytes_per_sample, decoder.backend.bytes_per_sample = 1000, 5000
    assert loop._bytes_per_sample(held, BatchKind(4, True, True)) == pixels + 5000
    assert loop._bytes_per_sample(held, BatchKind(4, True, False)) == plain + 1000
