"""POST /v1/images/edits, as OpenAI's clients call it: a picture to start from, and a mask.

https://platform.openai.com/docs/api-reference/images/createEdit: a form with the files image and mask, and the fields
prompt, model, n, size, response_format. What is transparent in the mask, or without one in the picture, is drawn anew;
of a mask without transparency what is white. strength and strength_counts, as `Engine.images` has them, are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ...engine.contract.condition import INPAINTING
from ..about import About
from ..orders import NotDrawnError, Picture, Start
from .forms import check_origin, read_form
from .openai import TAGS, order_of_pictures, pictures
from .parsing import host_of
from .schema import EditsBody, read_fields
from .served import Served, away
from .uploads import anew_of, mask_of, picture_of, pixels_of

FORM_TYPES = ("multipart/form-data",)
FILES = ("image", "mask")


def schema() -> dict[str, Any]:
    """Of the form, with its files."""
    described = EditsBody.model_json_schema()
    binary = {"type": "string", "format": "binary"}
    described["properties"] |= dict.fromkeys(FILES, binary)
    described["required"] = ["image"]
    return {"requestBody": {"required": True, "content": {FORM_TYPES[0]: {"schema": described}}}}


def add(routes: APIRouter, served: Served) -> None:
    """The route of this file."""

    @routes.post(
        "/v1/images/edits",
        tags=TAGS,
        summary="Pictures that start from another one",
        openapi_extra=schema(),
        response_class=Response,
    )
    async def edits(request: Request) -> Response:
        check_origin(request)
        _, raw = await served.body(request, FORM_TYPES, served.most_form_bytes)
        fields, files = await away(len(raw), lambda: read_form(request.headers["content-type"], raw))
        _check_files(fields)
        body = read_fields(EditsBody, fields)
        host = host_of(served.hosts, body.model, "model")
        picture = await away(len(raw), lambda: _picture(files, host.about))
        start = Start(body.strength, body.strength_counts, picture.mask is not None)
        order = order_of_pictures(body, body.prompt, host.about, start, picture)
        return await pictures(served, request, host, order)


def _check_files(fields: Mapping[str, str]) -> None:
    """Raises NotDrawnError 400 for a picture that came as a text."""
    for name in FILES:
        if name in fields:
            raise NotDrawnError(400, f"{name}: got a text, expected a file; with curl: -F '{name}=@day.png'")


def _picture(files: Mapping[str, bytes], about: About) -> Picture:
    """The uploaded picture and mask, of the engine's size. Raises NotDrawnError."""
    if about.image is None or not about.takes_image:
        why = "its samples are no pictures" if about.image is None else "it holds no image encoder"
        raise NotDrawnError(400, f"engine '{about.name}' starts from no picture: {why}")
    unknown = sorted(set(files) - set(FILES))
    if unknown or "image" not in files:
        got = f"a file {unknown[0][:40]!r}" if unknown else "no file 'image'"
        raise NotDrawnError(400, f"got {got}, expected the files image and, if part of it is kept, mask")
    image = picture_of(files["image"], "image", about.image)
    mask = mask_of(picture_of(files["mask"], "mask", about.image)) if "mask" in files else anew_of(image)
    if mask is None and all(any(one.name == name for one in about.contract.conditions) for name in INPAINTING):
        raise NotDrawnError(400, f"engine '{about.name}' inpaints; send a mask too, transparent where it is drawn anew")
    return Picture(pixels_of(image, about.image[2]), mask)
