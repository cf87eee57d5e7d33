"""POST /v1/samples, GET /v1/engines: every engine, by seeds and conditions."""

from __future__ import annotations

import json
import time
from enum import Enum
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ..hosts import Host
from ..orders import Drawn, Order
from . import answers
from .parsing import body_from_npz, host_of, order_of
from .schema import SamplesBody, read
from .served import JSON_TYPES, Served, away, server_timing

TAGS: list[str | Enum] = ["samples"]
MEDIA = {"png": "image/png", "npz": "application/x-npz", "json": "application/json"}
NPZ_TYPES = ("application/x-npz", "application/octet-stream", "application/zip")
SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": SamplesBody.model_json_schema(ref_template="#/components/schemas/{model}")},
            "application/x-npz": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def add(routes: APIRouter, served: Served) -> None:
    """The routes of this file."""

    @routes.post(
        "/v1/samples", tags=TAGS, summary="Samples of any engine", openapi_extra=SCHEMA, response_class=Response
    )
    async def samples(request: Request) -> Response:
        kind, raw = await served.body(request, (*JSON_TYPES, *NPZ_TYPES))

        def parsed() -> tuple[SamplesBody, Host, Order]:
            if kind in NPZ_TYPES:
                body = body_from_npz(raw, request.query_params, served.most_bytes)
            else:
                body = read(SamplesBody, raw)
            host = host_of(served.hosts, body.engine)
            host.check_room(len(body.seeds))
            if body.format == "json":
                answers.check_json(host.about, len(body.seeds))
            return body, host, order_of(body, host.about)

        body, host, order = await away(len(raw), parsed)
        drawn = await served.draw(request, host, order)
        start = time.perf_counter()
        content = await away(drawn.rows.nbytes, lambda: _encoded(body, order, drawn, host))
        header = server_timing(drawn.timing, 1e3 * (time.perf_counter() - start))
        return Response(content, media_type=MEDIA[body.format], headers={"Server-Timing": header})

    @routes.get("/v1/engines", tags=TAGS, summary="What is served: contracts, NFE, samplers, batch sizes, backends")
    async def engines(request: Request) -> Response:
        return JSONResponse(
            {
                "engines": [host.about.as_json() for host in served.hosts.values()],
                "limits": {"samples": served.limits.queue, "body_bytes": served.most_bytes},
            }
        )


def _encoded(body: SamplesBody, order: Order, drawn: Drawn, host: Host) -> bytes:
    if body.format == "png":
        return answers.sheet_of(drawn.rows)
    if body.format == "npz":
        return answers.npz_of(drawn, order)
    start = time.perf_counter()
    samples = answers.samples_of(drawn, order)
    timing = {
        "wait_ms": round(drawn.timing.wait_ms, 3),
        "sample_ms": round(drawn.timing.sample_ms, 3),
        "encode_ms": round(1e3 * (time.perf_counter() - start), 3),
        "batch": drawn.timing.shared,
    }
    named = {"engine": host.about.name, "sampler": order.kind.sampler, "nfe": order.kind.nfe}
    return json.dumps({**named, "timing": timing, "samples": samples}).encode()
