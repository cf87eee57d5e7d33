"""A text encoder with what its pipeline does to its output, as one graph: tokens in, its part of the conditions out.

    encoded [B, size] = Encode(tokens int64 [B, 2, length])

Each of the encoder's parts is put at its rows and columns of the condition that it belongs to, the rest is zero, and
the conditions follow one another, flattened. So the sum over a pipeline's encoders is their concatenation: SDXL's two
hidden states side by side, SD3's CLIP above T5, padded to T5's width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from ...engine.errors import InputError
from ..families.family import Part

# What a part takes of transformers' output.
OUTPUTS = {
    "last": lambda out: out.last_hidden_state,
    "penultimate": lambda out: out.hidden_states[-2],
    "pooled": lambda out: out.pooler_output,
    "projected": lambda out: out.text_embeds,
}
MASK = "mask"  # the tokenizer's own


@final
@dataclass(frozen=True)
class Place:
    """Where a part stands: its first row and column in a condition; a condition of rank 1 is one row."""

    part: Part
    row: int
    column: int


def places(
    parts: Sequence[Part], shapes: Mapping[str, tuple[int, ...]], lengths: Mapping[str, int], configs: Mapping[str, Any]
) -> dict[str, list[Place]]:
    """The places by encoder. lengths: tokens by encoder. Raises InputError when they do not fill the conditions."""
    found: dict[str, list[Place]] = {name: [] for name in configs}
    for condition, shape in shapes.items():
        row = 0
        width = shape[-1]
        blocks = sorted({one.block for one in parts if one.condition == condition})
        for block in blocks:
            column = 0
            here = [one for one in parts if one.condition == condition and one.block == block]
            for part in here:
                found[part.encoder].append(Place(part, row, column))
                column += lengths[part.encoder] if part.output == MASK else _width(part, configs[part.encoder])
            if column > width or (column < width and len(blocks) == 1):
                raise InputError(
                    f"the text encoders make {column} numbers a token for '{condition}', the network takes {width}; "
                    "give the encoders of this network"
                )
            row += lengths[here[0].encoder] if len(shape) == 2 else 0
    return found


def _width(part: Part, config: Any) -> int:
    config = getattr(config, "text_config", None) or config
    for name in ("projection_dim",) if part.output == "projected" else ("hidden_size", "d_model"):
        if (value := getattr(config, name, None)) is not None:
            return int(value)
    raise InputError(f"{part.encoder}: its config says no width; give the encoders of this network")


@final
class Encode(nn.Module):
    """forward(tokens int64 [B, 2, length]) -> encoded [B, size] in the dtype of the weights."""

    def __init__(
        self, encoder: nn.Module, placed: Sequence[Place], shapes: Mapping[str, tuple[int, ...]], *, masked: bool
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.placed = tuple(placed)
        self.shapes = dict(shapes)
        self.masked = masked
        self.deep = any(one.part.output == "penultimate" for one in placed)

    def forward(self, tokens: Tensor) -> Tensor:
        ids, mask = tokens[:, 0], tokens[:, 1]
        out = self.encoder(input_ids=ids, attention_mask=mask if self.masked else None, output_hidden_states=self.deep)
        dtype = next(self.encoder.parameters()).dtype
        pieces = []
        for condition, shape in self.shapes.items():
            here = [one for one in self.placed if one.part.condition == condition]
            piece = tokens.new_zeros((len(tokens), *shape), dtype=dtype) if not here else None
            for one in here:
                value = mask if one.part.output == MASK else OUTPUTS[one.part.output](out)
                put = _put(value.to(dtype), one, shape)
                piece = put if piece is None else piece + put
            assert piece is not None
            pieces.append(piece.flatten(1))
        return torch.cat(pieces, 1)


def _put(value: Tensor, place: Place, shape: tuple[int, ...]) -> Tensor:
    """`value` at its place among zeros, [B, *shape]."""
    around = [place.column, shape[-1] - place.column - value.shape[-1]]
    if len(shape) == 2:
        around += [place.row, shape[0] - place.row - value.shape[1]]
    return nn.functional.pad(value, around) if any(around) else value


def size_of(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Numbers of all conditions of a prompt."""
    return sum(math.prod(shape) for shape in shapes.values())
