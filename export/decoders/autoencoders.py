"""diffusers' autoencoders whose `decode` returns more than the image."""

from __future__ import annotations

import types
from typing import Any, final

from torch import Tensor, nn

from ..mirrored import mirrored


@final
class Quantized(nn.Module):
    """A VQModel: `decode` without its commitment loss."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.config = autoencoder.config

    def decode(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents).sample


@final
class Patched(nn.Module):
    """An AutoencoderKLFlux2: latents are patches of 2 x 2 in the channels, normalised by its batch norm."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        config = autoencoder.config
        self.config = types.SimpleNamespace(
            latent_channels=4 * int(config.latent_channels), force_upcast=getattr(config, "force_upcast", False)
        )

    def _deviation(self) -> Tensor:
        norm = self.autoencoder.bn
        return (norm.running_var + self.autoencoder.config.batch_norm_eps).sqrt().reshape(-1, 1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        mean = self.autoencoder.bn.running_mean.reshape(-1, 1, 1)
        return self.autoencoder.decode(nn.functional.pixel_shuffle(latents * self._deviation() + mean, 2)).sample

    def encode(self, image: Tensor) -> Tensor:
        """Latents, normalised."""
        mean = self.autoencoder.bn.running_mean.reshape(-1, 1, 1)
        mode = self.autoencoder.encode(image).latent_dist.mode()
        return (nn.functional.pixel_unshuffle(mode, 2) - mean) / self._deviation()


@final
class OneFrame(nn.Module):
    """An autoencoder of videos for pictures, as Qwen-Image's pipeline uses it."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.config = _named(autoencoder.config)

    def decode(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents[:, :, None]).sample[:, :, 0]

    def encode(self, image: Tensor) -> Tensor:
        """Latents before scaling and shift."""
        return self.autoencoder.encode(image[:, :, None]).latent_dist.mode()[:, :, 0]


@final
class Frames(nn.Module):
    """An autoencoder of videos: image [B, C, frames, H, W] of latents [B, c, f, h, w]."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.config = _named(autoencoder.config)

    def decode(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents).sample


@final
class Compressed(nn.Module):
    """An AutoencoderDC whose linear attention divides by a sum + 2e-8: the exporter takes + 1e-15 for + 0."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder: Any = mirrored(autoencoder)
        self.config = autoencoder.config
        for one in self.autoencoder.modules():
            if type(one).__name__ == "SanaMultiscaleLinearAttention":
                one.eps = max(one.eps, 2e-8)

    def decode(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents).sample

    def encode(self, image: Tensor) -> Tensor:
        """Latents before scaling."""
        return self.autoencoder.encode(image).latent


def _named(config: Any) -> Any:
    """Under the names that the other autoencoders have."""
    return types.SimpleNamespace(
        latent_channels=config.z_dim, latents_mean=config.latents_mean, latents_std=config.latents_std
    )


ONE_OUTPUT: dict[str, Any] = {
    "VQModel": Quantized,
    "AutoencoderKLFlux2": Patched,
    "AutoencoderKLQwenImage": OneFrame,
    "AutoencoderKLWan": Frames,
    "AutoencoderDC": Compressed,
}


def one_output(network: nn.Module) -> nn.Module:
    """The decoder as it is, or in a module whose `decode` returns the image alone."""
    found = type(network)
    kind = ONE_OUTPUT.get(found.__name__) if found.__module__.startswith("diffusers.") else None
    return network if kind is None else kind(network)


def autoencoder_of(network: nn.Module) -> nn.Module:
    """What is one of diffusers' autoencoders, or encodes for it."""
    return network.autoencoder if isinstance(network, Quantized) else network
