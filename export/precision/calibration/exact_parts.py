"""What an engine in eight bits is quantised from: the float32 graphs of its parts.

The network's own are made in precision/write.py. The others are written as the engine holds them if they stay in
floating point; where that is fp16, for a GPU, a second time in float32, in a folder that is removed in the end.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, final

from ....engine.artifact import IMAGE_ENCODER
from ..prompts import Texts
from .observations import Observations

if TYPE_CHECKING:
    from ....engine.contract.contract import DecoderContract
    from ....engine.contract.policy import PolicyContract
    from ....engine.contract.text_encoders import TextEncoders
    from ....engine.progress import Lines
    from ...network import Network
    from ..write import Asked

PLACE = ".float32-parts"


@final
class ExactParts:
    """Of the engine in `folder`. precision: of its parts that stay in floating point."""

    def __init__(self, folder: Path, source: Network, precision: str, say: Lines) -> None:
        self._folder, self._source, self._precision, self._say = folder, source, precision, say
        self._place = folder / PLACE

    def texts(self, asked: Asked) -> tuple[TextEncoders | None, Asked]:
        """The text encoders, once they are written, and what is asked with their prompts. Raises InputError."""
        given = self._source.encoders
        if given is None or (made := given.write_text(self._folder, self._precision, self._say)) is None:
            return None, asked
        short = [one for one in made.encoders if one.contract.precision == "fp16"]
        paths: dict[str, Path] = {}
        if short:
            self._place.mkdir()
            given.write_text(self._place, "fp32", self._say, [one.contract.name for one in short])
            paths = {one.contract.name: self._place / one.file for one in short}
        return made, replace(asked, texts=Texts(self._folder, made, asked.given.prompts, paths))

    def policy(self, asked: Asked) -> tuple[PolicyContract | None, Asked]:
        """The policy, once its encoder is written, and what is asked with its observations. Raises InputError."""
        if self._source.policy is None:
            return None, asked
        made = self._source.policy.write(self._folder, self._say)
        seen = asked.given.observations
        return made, replace(asked, observations=Observations(self._folder, made, seen)) if seen else asked

    def decoders(self, written: DecoderContract | None) -> Path:
        """Where decoder.onnx and encoders/image.onnx are in float32; neither is there where they have no such graphs.

        written: the decoder as the engine holds it.
        """
        if written is None or written.precision == "fp32":
            return self._folder
        source = self._source
        if written.precision == self._precision == "fp16" and source.decoder:
            self._place.mkdir(exist_ok=True)
            if source.decoder.write(self._place, "fp32", self._say).precision == "fp32":
                if source.encoders and (self._folder / IMAGE_ENCODER).exists():
                    source.encoders.write_image(self._place, "fp32", self._say)
            else:  # asked for in fp16 by the user
                self.remove()
        return self._place

    def remove(self) -> None:
        """The folder of float32 graphs, if there is one."""
        shutil.rmtree(self._place, ignore_errors=True)
