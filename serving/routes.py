"""POST /v1/samples, GET /v1/engines: every engine, by seeds and conditions."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from . import answers
from .guard import read_body, until_left
from .hosts import Host
from .limits import Limits, body_bytes
from .metrics import Metrics
from .orders import Drawn, NotDrawnError, Order, Timing
from .parsing import body_from_npz, host_of, order_of
from .schema import SamplesBody, read

MEDIA = {"png": "image/png", "npz": "application/x-npz", "json": "application/json"}
JSON_TYPES = ("application/json",)
NPZ_TYPES = ("application/x-npz", "application/octet-stream", "application/zip")
LARGE_BYTES = 32 << 10  # more than this is parsed or encoded away from the event loop
Value = TypeVar("Value")
SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": SamplesBody.model_json_schema(ref_template="#/components/schemas/{model}")},
            "application/x-npz": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@final
class Served:
    """What all routes share: the engines, their bounds, what is counted."""

    def __init__(self, hosts: Mapping[str, Host], limits: Limits, metrics: Metrics) -> None:
        self.hosts = hosts
        self.limits = limits
        self.metrics = metrics

    @property
    def most_bytes(self) -> int:
        return body_bytes((host.about.contract for host in self.hosts.values()), self.limits.queue)

    async def body(self, request: Request, types: tuple[str, ...]) -> tuple[str, bytes]:
        """(content type, body). Raises NotDrawnError."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in types:  # also what keeps forms of foreign pages out
            raise NotDrawnError(415, f"content type {kind!r:.60}, expected {' or '.join(types[:2])}")
        return kind, await read_body(request, self.most_bytes)

    async def draw(self, request: Request, host: Host, order: Order) -> Drawn:
        """What the engine draws; given up when the client leaves. Raises NotDrawnError, 499 then."""
        drawing = asyncio.ensure_future(host.draw(order))
        leaving = asyncio.ensure_future(until_left(request))
        try:
            await asyncio.wait({drawing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not drawing.done():
                raise NotDrawnError(499, "the client has left")
            drawn = drawing.result()
        finally:
            drawing.cancel()
            leaving.cancel()
        self.metrics.drawn(host.about.name, order.kind.sampler, order.kind.nfe, drawn)
        return drawn


async def away(size: int, work: Callable[[], Value]) -> Value:
    """`work()`, in a thread where `size` bytes are many."""
    return await asyncio.to_thread(work) if size > LARGE_BYTES else work()


def server_timing(timing: Timing, encode_ms: float) -> str:
    """For the header Server-Timing, which browsers' tools draw."""
    return f"wait;dur={timing.wait_ms:.2f}, sample;dur={timing.sample_ms:.2f}, encode;dur={encode_ms:.2f}"


def router(served: Served) -> APIRouter:
    """The routes of this file."""
    routes = APIRouter(prefix="/v1", tags=["samples"])

    @routes.get("/engines", summary="What is served: contracts, NFE, samplers, batch sizes, backends")
    async def engines() -> dict[str, Any]:
        return {
            "engines": [host.about.as_json() for host in served.hosts.values()],
            "limits": {"samples": served.limits.queue, "body_bytes": served.most_bytes},
        }

    @routes.post("/samples", summary="Samples of any engine", openapi_extra=SCHEMA, response_class=Response)
    async def samples(request: Request) -> Response:
        kind, raw = await served.body(request, (*JSON_TYPES, *NPZ_TYPES))

        def parsed() -> tuple[SamplesBody, Host, Order]:
            if kind in NPZ_TYPES:
                body = body_from_npz(raw, request.query_params, served.most_bytes)
            else:
                body = read(SamplesBody, raw)
            host = host_of(served.hosts, body.engine)
            if body.format == "json":
                answers.check_json(host.about, len(body.seeds))
            return body, host, order_of(body, host.about)

        body, host, order = await away(len(raw), parsed)
        drawn = await served.draw(request, host, order)
        start = time.perf_counter()
        content = await away(drawn.rows.nbytes, lambda: _encoded(body, order, drawn, host))
        header = server_timing(drawn.timing, 1e3 * (time.perf_counter() - start))
        return Response(content, media_type=MEDIA[body.format], headers={"Server-Timing": header})

    return routes


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
