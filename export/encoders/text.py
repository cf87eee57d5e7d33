"""A text encoder with what its pipeline does to its output, as one graph: tokens in, its part of the conditions out.

    encoded [B, size] = Encode(tokens int64 [B, 2, length])

Each of the encoder's parts is put at its rows and columns of the condition that it belongs to, the rest is zero, and
the conditions follow one another, flattened. So the sum over a pipeline's encoders is their concatenation: SDXL's two
hidden states side by side, SD3's CLIP above T5, padded to T5's width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from ...engine.errors import InputError
from ..families.family import Part

# What a part takes of transformers' output, and of the tokenizer's mask [B, length].
OUTPUTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "last": lambda out, mask: out.last_hidden_state,
    "masked": lambda out, mask: out.last_hidden_state * mask[..., None].to(out.last_hidden_state.dtype),
    "penultimate": lambda out, mask: out.hidden_states[-2],
    "pooled": lambda out, mask: out.pooler_output,
    "projected": lambda out, mask: out.text_embeds,
    "mask": lambda out, mask: mask,
    "mask and one": lambda out, mask: torch.arange(mask.shape[1], device=mask.device) <= mask.sum(1, keepdim=True),
}
MASKS = ("mask", "mask and one")
HIDDEN = "hidden:"  # "hidden:9,18,27": these hidden states side by side
# Where a language model has its text encoder; what stands beside it is not run.
INNER = {"Qwen2_5_VLForConditionalGeneration": "model.language_model"}


@final
@dataclass(frozen=True)
class Place:
    """Where a part stands: its first row and column in a condition; a condition of rank 1 is one row."""

    part: Part
    row: int
    column: int


def places(
    parts: Sequence[Part], shapes: Mapping[str, tuple[int, ...]], rows: Mapping[str, int], configs: Mapping[str, Any]
) -> dict[str, list[Place]]:
    """The places by encoder. rows: of its tokens, by encoder. Raises InputError where conditions are not filled."""
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
                column += rows[part.encoder] if part.output in MASKS else _width(part, configs[part.encoder])
            if column > width or (column < width and len(blocks) == 1):
                raise InputError(
                    f"the text encoders make {column} numbers a token for '{condition}', the network takes {width}; "
                    "give the encoders of this network"
                )
            row += rows[here[0].encoder] if len(shape) == 2 else 0
    return found


def _width(part: Part, config: Any) -> int:
    config = getattr(config, "text_config", None) or config
    if part.output.startswith(HIDDEN):
        return len(_layers(part)) * int(config.hidden_size)
    for name in ("projection_dim",) if part.output == "projected" else ("hidden_size", "d_model"):
        if (value := getattr(config, name, None)) is not None:
            return int(value)
    raise InputError(f"{part.encoder}: its config says no width; give the encoders of this network")


def _layers(part: Part) -> list[int]:
    return [int(one) for one in part.output.removeprefix(HIDDEN).split(",")]


@final
@dataclass(frozen=True)
class Rows:
    """Which tokens of a prompt are rows of a condition: those at `kept`, None for all.

    prefix: `kept` is of prompts that begin with these ids; of others the first tokens are taken, as many.
    """

    kept: tuple[int, ...] | None = None
    prefix: tuple[int, ...] = ()

    def of(self, values: Tensor, ids: Tensor) -> Tensor:
        """[B, rows, ...] of values [B, length, ...]; other values, pooled ones, as they are."""
        if self.kept is None or values.ndim < 2 or values.shape[1] != ids.shape[1]:
            return values
        chosen = values[:, torch.tensor(self.kept, device=values.device)]
        if not self.prefix:
            return chosen
        start = torch.tensor(self.prefix, device=ids.device)
        found = (ids[:, : len(self.prefix)] == start).all(1).reshape(-1, *[1] * (values.ndim - 1))
        return torch.where(found, chosen, values[:, : len(self.kept)])


@final
class Encode(nn.Module):
    """forward(tokens int64 [B, 2, length]) -> encoded [B, size] in the dtype of the weights."""

    def __init__(
        self,
        encoder: nn.Module,
        placed: Sequence[Place],
        shapes: Mapping[str, tuple[int, ...]],
        rows: Rows,
        *,
        masked: bool,
    ) -> None:
        super().__init__()
        self.encoder = encoder_of(encoder)
        self.placed = tuple(placed)
        self.shapes = dict(shapes)
        self.rows = rows
        self.masked = masked
        outputs = [one.part.output for one in placed]
        self.given: dict[str, Any] = {
            "output_hidden_states": any(one == "penultimate" or one.startswith(HIDDEN) for one in outputs)
        }
        if hasattr(getattr(self.encoder, "config", None), "use_cache") and not _is_t5(self.encoder):
            self.given["use_cache"] = False

    def forward(self, tokens: Tensor) -> Tensor:
        ids, mask = tokens[:, 0], tokens[:, 1]
        out = self.encoder(input_ids=ids, attention_mask=mask if self.masked else None, **self.given)
        dtype = next(self.encoder.parameters()).dtype
        pieces = []
        for condition, shape in self.shapes.items():
            here = [one for one in self.placed if one.part.condition == condition]
            piece = tokens.new_zeros((len(tokens), *shape), dtype=dtype) if not here else None
            for one in here:
                value = self.rows.of(_output(one.part, out, mask), ids)
                put = _put(value.to(dtype), one, shape)
                piece = put if piece is None else piece + put
            assert piece is not None
            pieces.append(piece.flatten(1))
        return torch.cat(pieces, 1)


def encoder_of(model: nn.Module) -> nn.Module:
    """The text encoder in a language model: without its head, and without what sees pictures."""
    name = type(model).__name__
    inner = INNER.get(name, "model" if name.endswith("ForCausalLM") else "")
    return model.get_submodule(inner) if inner else model


def _is_t5(encoder: nn.Module) -> bool:
    return type(encoder).__name__ in ("T5EncoderModel", "UMT5EncoderModel")


def _output(part: Part, out: Any, mask: Tensor) -> Tensor:
    if part.output.startswith(HIDDEN):
        return torch.cat([out.hidden_states[layer] for layer in _layers(part)], -1)
    return OUTPUTS[part.output](out, mask)


def _put(value: Tensor, place: Place, shape: tuple[int, ...]) -> Tensor:
    """`value` at its place among zeros, [B, *shape]."""
    around = [place.column, shape[-1] - place.column - value.shape[-1]]
    if len(shape) == 2:
        around += [place.row, shape[0] - place.row - value.shape[1]]
    return nn.functional.pad(value, around) if any(around) else value


def size_of(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Numbers of all conditions of a prompt."""
    return sum(math.prod(shape) for shape in shapes.values())
