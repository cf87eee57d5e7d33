"""Prompts that eight bits are calibrated with: embeddings have no default, but a pipeline's text encoders are there.

They are encoded by the exported encoders themselves. A built-in list stands in where the user gives none
(`calibrate_prompts`, `--calibrate-prompts FILE`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from ...engine.contract.contract import Contract
from ...engine.contract.text_encoders import NEGATIVE, TextEncoder, TextEncoders
from ...engine.errors import InputError, shown
from ..check import OnnxRun
from .calibration.makers import Part, split

Array = NDArray[Any]
MOST = 1000  # prompts of a file: each is held encoded
USUAL = (
    "a lighthouse on a cliff in fog, oil on canvas",
    "portrait of an old fisherman, soft window light, 85 mm photograph",
    "two children fly a red kite over a green field",
    "a bowl of oranges on a wooden table, still life",
    "a crowded night market in the rain, neon signs, reflections on the street",
    "a small robot waters a plant, 3D render",
    "snow-covered mountains above a blue lake, aerial view",
    "a grey cat asleep on a stack of books",
    "blueprint of a steam locomotive, white lines on blue paper",
    "a dancer in a yellow dress, motion blur, black background",
    "macro photograph of a beetle on a leaf",
    "a castle made of glass in a desert at sunset, fantasy art",
    "a city street in winter, pencil sketch",
    "logo of a bakery, flat design, two colours",
    "an astronaut rides a horse on the beach",
)


@final
@dataclass(frozen=True)
class Texts:
    """Text encoders that were written into `folder`, and the prompts to encode.

    paths: by an encoder's name, the file that encodes in place of the engine's.
    """

    folder: Path
    encoders: TextEncoders
    prompts: tuple[str, ...]
    paths: Mapping[str, Path] = field(default_factory=dict)

    @property
    def conditions(self) -> tuple[str, ...]:
        return self.encoders.conditions

    def parts(self) -> list[Part]:
        return [
            Part(one.contract.name, self.folder / one.file, self._path(one), one.contract, self.tokens(one))
            for one in self.encoders.encoders
        ]

    def of_files(self, paths: Mapping[str, Path]) -> Texts:
        return replace(self, paths={**self.paths, **paths})

    def _path(self, encoder: TextEncoder) -> Path:
        return self.paths.get(encoder.contract.name, self.folder / encoder.file)

    def tables(self, contract: Contract) -> dict[str, Array]:
        """By condition float32 [m, *shape], of negative prompts [1, *shape]; seed s takes row s mod m.

        Raises InputError, EngineFileError.
        """
        names = {one.name for one in contract.conditions}
        found = split(np.asarray(sum(map(self.encoded, self.encoders.encoders))), self.conditions, contract)
        twins = [name for name in self.encoders.conditions if name + NEGATIVE in names]
        if twins:
            if self.encoders.zeros:
                empty = {name: np.zeros_like(found[name][:1]) for name in twins}
            else:
                rows = sum(self.encoded(one, [""], negative=True) for one in self.encoders.encoders)
                empty = split(np.asarray(rows), self.conditions, contract)
            found |= {name + NEGATIVE: empty[name] for name in twins}
        return found

    def encoded(self, encoder: TextEncoder, texts: Sequence[str] | None = None, *, negative: bool = False) -> Array:
        """float32 [m, size] of one encoder, as its file makes them."""
        run = OnnxRun(self._path(encoder), encoder.contract.inputs, encoder.contract.output)
        tokens = self.tokens(encoder, texts, negative=negative)
        return np.concatenate([run((tokens[n : n + 1],)) for n in range(len(tokens))])

    def tokens(self, encoder: TextEncoder, texts: Sequence[str] | None = None, *, negative: bool = False) -> Array:
        """int64 [m, 2, length]: ids and masks, cut and padded by the tokenizer itself."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.folder / encoder.tokenizer))
        framed = [encoder.framed(one, negative=negative) for one in (self.prompts if texts is None else texts)]
        return np.array([[one.ids, one.attention_mask] for one in tokenizer.encode_batch(framed)], np.int64)


def prompts_from(given: str | os.PathLike[str] | Sequence[str] | None) -> tuple[str, ...]:
    """The prompts of a UTF-8 file, one a line, or those of a list; the usual ones for None. Raises InputError."""
    if given is None:
        return USUAL
    where = "calibrate_prompts"
    if isinstance(given, (str, os.PathLike)):
        where = f"calibrate_prompts '{os.fspath(given)}'"
        try:
            lines = Path(given).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:  # no file, or no UTF-8
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise InputError(f"{where}: {reason}; expected a text file with a prompt on each line") from None
    else:
        lines = list(given)
        if not all(isinstance(one, str) for one in lines):
            raise InputError(f"{where}: got {shown(lines)}, expected texts, or the name of a file of them")
    found = tuple(one.strip() for one in lines if one.strip())
    if not 1 <= len(found) <= MOST:
        raise InputError(f"{where}: {len(found)} prompts, expected 1 to {MOST}, one a line")
    return found


def digest_of(prompts: Sequence[str]) -> str:
    """sha256 hex."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()
