"""The bodies of requests, as pydantic models: what OpenAPI shows, and what is checked before anything else.

Conditions are checked afterwards, by the contract of the engine. No field is a path or an address.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError

from ...engine.errors import did_you_mean
from ..limits import MOST_PICTURES, MOST_PROMPT_LETTERS
from ..orders import NotDrawnError

SEEDS = 1 << 64
Format = Literal["json", "png", "npz"]
Body = TypeVar("Body", bound=BaseModel)
SamplerName = Literal["engine", "ddim", "pfdiff"]


class SamplesBody(BaseModel):
    """POST /v1/samples."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    engine: str | None = Field(None, max_length=200, description="A name of /v1/engines; needed if there are several.")
    seeds: list[int] = Field(description="One sample each, integers in 0 .. 2^64 - 1.", examples=[[0, 1, 2]])
    nfe: int | None = Field(None, description="Network evaluations; needed if the sampler has several.", examples=[8])
    sampler: SamplerName = Field("engine", description="The engine's own program, or DDIM or PFDiff beside it.")
    conditions: dict[str, Any] = Field(
        {},
        description="By the contract's names: one value for all samples, or a list with one for each.",
        examples=[{"label": "bag"}],
    )
    prompt: str | None = Field(None, max_length=MOST_PROMPT_LETTERS, description="Of engines with text encoders.")
    negative_prompt: str | None = Field(None, max_length=MOST_PROMPT_LETTERS)
    format: Format = Field("json", description="json: PNGs in base64, or numbers; png: one sheet; npz: float32.")


class PicturesBody(BaseModel):
    """What both of OpenAI's routes for pictures take, with fields of ours behind theirs (from seed on)."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    model: str | None = Field(None, max_length=200, description="The engine, a name of /v1/models.")
    n: int | None = Field(None, ge=1, le=MOST_PICTURES)
    size: str | None = Field(None, max_length=20, description="Only the size that the engine draws, or auto.")
    response_format: Literal["b64_json"] | None = Field(None, description="URLs are not given out.")
    output_format: Literal["png"] | None = None
    quality: Literal["auto"] | None = Field(None, description="Say nfe instead.")
    user: str | None = Field(None, max_length=1000, description="Read and not used.")
    seed: int | None = Field(None, ge=0, lt=SEEDS, description="Picture i has seed + i; default: drawn, and told.")
    nfe: int | None = Field(None, description="Default: the most that the engine has.")
    guidance: float | None = Field(None, allow_inf_nan=False)
    negative_prompt: str | None = Field(None, max_length=MOST_PROMPT_LETTERS)
    sampler: SamplerName = Field("engine", description="As in POST /v1/samples.")
    conditions: dict[str, Any] = Field({}, description="As in POST /v1/samples.", examples=[{"label": "bag"}])


class ImagesBody(PicturesBody):
    """POST /v1/images/generations, as OpenAI's clients send it."""

    prompt: str = Field(max_length=MOST_PROMPT_LETTERS)


class EditsBody(PicturesBody):
    """POST /v1/images/edits, as OpenAI's clients send it, beside the files image and mask; strengths are ours.

    The fields of a form are texts, so numbers are read from them.
    """

    model_config = ConfigDict(strict=False)

    prompt: str | None = Field(None, max_length=MOST_PROMPT_LETTERS, description="Of engines with text encoders.")
    conditions: Json[dict[str, Any]] = Field({}, description="As in POST /v1/samples, as a text in JSON.")
    strength: float | None = Field(None, gt=0, le=1, description="How much is drawn anew; default 0.8, with a mask 1.")
    strength_counts: Literal["part", "whole"] = Field("part", description="whole: nfe counts as diffusers counts.")


def read(model: type[Body], raw: bytes) -> Body:
    """Raises NotDrawnError 400 with the first thing that does not fit."""
    try:
        body = model.model_validate_json(raw)
    except ValidationError as error:
        raise NotDrawnError(400, first_of(error, model)) from None
    try:
        json.loads(raw, object_pairs_hook=_each_once)  # pydantic takes the last of several
    except (ValueError, RecursionError):  # integers of thousands of digits
        raise NotDrawnError(400, "body: numbers or levels beyond what is read; give smaller ones") from None
    return body


def read_fields(model: type[Body], fields: Mapping[str, str]) -> Body:
    """`read` of a form's fields."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise NotDrawnError(400, first_of(error, model)) from None


def _each_once(pairs: list[tuple[str, Any]]) -> None:
    """Raises NotDrawnError for an object with a name that stands twice."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise NotDrawnError(400, f"body: the field {twice[:40]!r} stands twice; give it once")


def first_of(error: ValidationError, model: type[BaseModel]) -> str:
    """One line: where, and what was expected."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part)[:40] for part in first["loc"])
    message = " ".join(first["msg"].split())[:300]
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(where, model.model_fields)
        return f"unknown field {where!r}; expected {', '.join(model.model_fields)}{hint}"
    return f"{where}: {message}" if where else f"body: {message}"
