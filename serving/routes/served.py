"""What all routes share: the engines, reading a body, waiting for samples, the header of timings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TypeVar, final

from starlette.requests import ClientDisconnect, Request

from ..hosts import Host
from ..limits import BODY_SECONDS, SKIPPED_BODY_BYTES, Limits, body_bytes, form_bytes
from ..metrics import Metrics
from ..orders import Drawn, NotDrawnError, Order, Timing

JSON_TYPES = ("application/json",)
LARGE_BYTES = 32 << 10  # more than this is parsed or encoded away from the event loop
Value = TypeVar("Value")


@final
class Served:
    """The engines by name, their bounds, and what is counted."""

    def __init__(self, hosts: Mapping[str, Host], limits: Limits, metrics: Metrics) -> None:
        self.hosts = hosts
        self.limits = limits
        self.metrics = metrics

    @cached_property
    def most_bytes(self) -> int:
        return body_bytes((host.about.contract for host in self.hosts.values()), self.limits.queue)

    @cached_property
    def most_form_bytes(self) -> int:
        return form_bytes(host.about.image for host in self.hosts.values())

    async def body(self, request: Request, types: tuple[str, ...], most_bytes: int | None = None) -> tuple[str, bytes]:
        """(content type, body). most_bytes: other than usual. Raises NotDrawnError."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in types:  # also what keeps forms of foreign pages out
            raise NotDrawnError(415, f"content type {kind!r:.60}, expected {' or '.join(types[:2])}")
        return kind, await read_body(request, self.most_bytes if most_bytes is None else most_bytes)

    async def draw(self, request: Request, host: Host, order: Order) -> Drawn:
        """What the engine draws; given up when the client leaves. Raises NotDrawnError, 499 then."""
        drawing = host.draw(order)
        watching = asyncio.ensure_future(cancel_when_left(request, drawing))
        try:
            drawn = await drawing
        except asyncio.CancelledError:
            if not watching.done():  # it is the server that ends
                raise
            raise NotDrawnError(499, "the client has left") from None
        finally:
            watching.cancel()
        self.metrics.drawn(host.about.name, order.kind.sampler, order.kind.nfe, drawn)
        return drawn


async def away(size: int, work: Callable[[], Value]) -> Value:
    """`work()`, in a thread where `size` bytes are many."""
    return await asyncio.to_thread(work) if size > LARGE_BYTES else work()


def server_timing(timing: Timing, encode_ms: float) -> str:
    """For the header Server-Timing, which browsers' tools draw."""
    return f"wait;dur={timing.wait_ms:.2f}, sample;dur={timing.sample_ms:.2f}, encode;dur={encode_ms:.2f}"


async def read_body(request: Request, most_bytes: int) -> bytes:
    """The whole body. Raises NotDrawnError 413 for a larger one, 408 for a slow one."""
    parts: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more and size <= SKIPPED_BODY_BYTES:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                more, part = message.get("more_body", False), message.get("body", b"")
                size += len(part)
                if size <= most_bytes:
                    parts.append(part)
                else:
                    parts.clear()  # the rest is read and dropped: a client that is still sending sees no answer
    except TimeoutError:
        raise NotDrawnError(408, f"the body took longer than {BODY_SECONDS:g} s") from None
    if size > most_bytes:
        form = request.headers.get("content-type", "").startswith("multipart/")
        less = "a picture of the engine's size, as PNG or JPEG" if form else "fewer samples, or .npz for JSON"
        raise NotDrawnError(413, f"a body of more than {most_bytes} bytes; send {less}")
    return b"".join(parts)


async def cancel_when_left(request: Request, drawing: asyncio.Future[Drawn]) -> None:
    """Cancel `drawing` when the client has gone; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    drawing.cancel()
