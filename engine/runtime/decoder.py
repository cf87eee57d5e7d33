"""The decoder of a latent model: the second network of an engine, run once a sample, after the last step.

    image [batch, C, H, W] = decoder(samples [batch, *shape])

It is a backend like the network's, with buffers of its own where its dtype is another than the samples' float32.
On a CUDA device it runs on the network's stream, so it is captured in the same graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

import torch

from ..artifact import DECODER
from ..backends.abstract import Backend, Buffers, NetworkFiles
from ..backends.choose import open_best
from ..contract.contract import DecoderContract
from ..errors import BackendError

if TYPE_CHECKING:
    from ..backends.abstract import Module

# Runs the decoder once and returns the images float32 [batch, C, H, W], which the next call overwrites.
Decode = Callable[[], torch.Tensor]


def load_decoder(
    network: NetworkFiles, opened: Backend, backend: str, threads: int | None, module: Module | None
) -> LoadedDecoder | None:
    """The decoder beside its loaded network, on the same device and stream; None where the engine has none.

    backend: as it was asked for the network. "torch" needs `module`, decoder(latents) -> image with scaling and shift;
    without one, the best other backend decodes. Raises BackendError.
    """
    artifact = network.artifact
    if artifact is None or artifact.decoder is None:
        return None
    files = replace(
        network, onnx=artifact.path / DECODER, contract=artifact.decoder, module=module, stream=opened.stream
    )
    name = "auto" if backend == "torch" and module is None else backend
    try:
        running, _ = open_best(files, opened.device, name, threads)
    except BackendError as error:
        raise BackendError(f"the decoder: {error}") from None
    return LoadedDecoder(running, artifact.decoder)


@final
@dataclass(frozen=True, eq=False)
class LoadedDecoder:
    """A decoder that is ready: who runs it, and what it takes and gives."""

    backend: Backend
    contract: DecoderContract

    def bind(self, samples: torch.Tensor) -> Decode:
        """A function that decodes what stands in `samples`, float32 [batch, *shape], contiguous, at every call."""
        backend = self.backend
        images = torch.zeros((len(samples), *self.contract.image), dtype=torch.float32, device=backend.device)
        converted = backend.dtype != torch.float32
        latents = torch.zeros_like(samples, dtype=backend.dtype) if converted else samples
        out = torch.zeros_like(images, dtype=backend.dtype) if converted else images
        (evaluate,) = backend.bind([Buffers(latents, None, (), out)])

        def decode() -> torch.Tensor:
            if not converted:
                return evaluate()
            latents.copy_(samples)
            return images.copy_(evaluate())

        return decode

    @property
    def bytes_per_sample(self) -> int:
        """Device bytes of the buffers above for each sample, without what the decoder itself needs."""
        latents, image = math.prod(self.contract.shape), math.prod(self.contract.image)
        width = torch.empty((), dtype=self.backend.dtype).element_size()
        return 4 * image + (width * (latents + image) if self.backend.dtype != torch.float32 else 0)


def not_finite(contract: DecoderContract) -> str:
    """What to say when an image has NaN or infinity in it, which pixels would show as black."""
    remedy = "check its weights and its scaling" if contract.precision == "fp32" else "build with a decoder in fp32"
    return f"the decoder's images are not finite in {contract.precision}; {remedy}"
