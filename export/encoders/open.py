"""What stands before a network: the text encoders of a pipeline, and the image encoder of its autoencoder."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from ...engine.contract.contract import Contract, DecoderContract
from ...engine.contract.text_encoders import TextEncoders
from ...engine.errors import InputError
from ...engine.progress import Lines
from ..described import Described
from .from_pipeline import PipelineEncoders
from .image import ImageEncoder


@final
@dataclass(frozen=True)
class Encoders:
    """At least one of the two is there."""

    text: PipelineEncoders | None
    image: ImageEncoder | None

    @property
    def digest(self) -> str:
        """sha256 hex of both; nothing is exported."""
        words = "|".join("" if one is None else one.digest for one in (self.text, self.image))
        return hashlib.sha256(words.encode()).hexdigest()

    def write_image(self, folder: Path, precision: str, progress: Lines) -> DecoderContract | None:
        """Write the image encoder into encoders/ for a network of `precision`. Raises InputError."""
        return self.image.write(folder, precision, progress) if self.image else None

    def write_text(
        self, folder: Path, precision: str, progress: Lines, only: Collection[str] | None = None
    ) -> TextEncoders | None:
        """Write the text encoders, or some by name, one after the other, likewise. Raises InputError, BackendError."""
        return self.text.write(folder, precision, progress, only) if self.text else None


def open_encoders(described: Described, network: Contract, decoder: Any) -> Encoders | None:
    """The encoders that belong to the network; None where there are none. Raises InputError, BackendError."""
    try:
        text = PipelineEncoders(described.prompts, network) if described.prompts else None
    except InputError as error:
        raise InputError(f"network '{described.name}': {error}") from error
    image = ImageEncoder.of(decoder, network)
    return Encoders(text, image) if text or image else None
