"""diffusers' autoencoders whose `decode` returns more than the image."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor, nn


@final
class Quantized(nn.Module):
    """A VQModel: `decode` without its commitment loss."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.config = autoencoder.config

    def decode(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents).sample


def one_output(network: nn.Module) -> nn.Module:
    """The decoder as it is, or in a module whose `decode` returns the image alone."""
    found = type(network)
    return Quantized(network) if found.__name__ == "VQModel" and found.__module__.startswith("diffusers.") else network


def autoencoder_of(network: nn.Module) -> nn.Module:
    """What `one_output` was given."""
    return network.autoencoder if isinstance(network, Quantized) else network
