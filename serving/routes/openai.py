"""POST /v1/images/generations and GET /v1/models, as OpenAI's clients call them, for engines with text encoders.

https://platform.openai.com/docs/api-reference/images/create: prompt, model, n, size, response_format b64_json. What is
not theirs (seed, nfe, guidance, negative_prompt, sampler, conditions) goes into extra_body of their Python client.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
from enum import Enum
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ..about import About
from ..hosts import Host
from ..orders import Kind, NotDrawnError, Order, Picture, Start
from ..samplers import OWN
from .answers import png_of
from .parsing import guidance_of, host_of, nfe_of, order_for, seeds_from, words_of
from .schema import ImagesBody, PicturesBody, read
from .served import JSON_TYPES, Served, server_timing

TAGS: list[str | Enum] = ["openai"]
SCHEMA: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": ImagesBody.model_json_schema()}}}
}
DRAWN_SEED_BITS = 32  # so that JavaScript can hold the seed


def add(routes: APIRouter, served: Served) -> None:
    """The routes of this file."""

    @routes.get("/v1/models", tags=TAGS, summary="The engines, as OpenAI's clients list models")
    async def models(request: Request) -> Response:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "pfdiff"} for name in served.hosts]
        return JSONResponse({"object": "list", "data": listed})

    @routes.post(
        "/v1/images/generations",
        tags=TAGS,
        summary="Pictures from a prompt",
        openapi_extra=SCHEMA,
        response_class=Response,
    )
    async def images(request: Request) -> Response:
        _, raw = await served.body(request, JSON_TYPES)
        body = read(ImagesBody, raw)
        host = host_of(served.hosts, body.model, "model")
        order = order_of_pictures(body, body.prompt, host.about)
        return await pictures(served, request, host, order)


async def pictures(served: Served, request: Request, host: Host, order: Order) -> Response:
    """The answer of both routes for pictures. Raises NotDrawnError."""
    drawn = await served.draw(request, host, order)
    start = time.perf_counter()
    pngs = await asyncio.to_thread(lambda: [base64.b64encode(png_of(one)).decode() for one in drawn.rows])
    assert host.about.image is not None
    height, width, _ = host.about.image
    content = {
        "created": int(time.time()),
        "size": f"{width}x{height}",
        "output_format": "png",
        "data": [{"b64_json": png, "seed": int(seed)} for seed, png in zip(order.seeds, pngs, strict=True)],
        "nfe": order.kind.nfe,
    }
    header = server_timing(drawn.timing, 1e3 * (time.perf_counter() - start))
    return Response(json.dumps(content), media_type="application/json", headers={"Server-Timing": header})


def order_of_pictures(
    body: PicturesBody, prompt: str | None, about: About, start: Start | None = None, picture: Picture | None = None
) -> Order:
    """Raises NotDrawnError."""
    words_of(about, prompt, body.negative_prompt)  # what is wrong with most engines is said first
    if about.image is None:
        raise NotDrawnError(400, f"samples of shape {list(about.contract.shape)} are no pictures; use POST /v1/samples")
    height, width, _ = about.image
    if body.size not in (None, "auto", f"{width}x{height}"):
        raise NotDrawnError(400, f"size {body.size!r}, this engine draws {width}x{height}")
    held = about.samplers.get(body.sampler) or about.samplers[OWN]
    nfe = nfe_of(about, body.sampler, max(held) if body.nfe is None else body.nfe)
    first = secrets.randbits(DRAWN_SEED_BITS) if body.seed is None else body.seed
    count = body.n or 1
    seeds = np.array(seeds_from(first, count), np.uint64)
    kind = Kind(body.sampler, nfe, pixels=True, start=start)
    given = {**body.conditions, **guidance_of(about, body.guidance, body.conditions)}
    return order_for(about, kind, seeds, given, prompt, body.negative_prompt, picture)
