"""What every request goes through: who may ask, its route, what is counted; and no traceback leaves.

FastAPI describes the routes (/openapi.json) and answers what none of them is for. The routes themselves are called
here: what FastAPI does for each request (stacks of contexts, dependencies, bodies) none of ours asks for, and it was
half of what a request cost.
"""

from __future__ import annotations

import logging
import time
from typing import final

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .guard import HEADERS, Access, error_response
from .metrics import Metrics
from .orders import NotDrawnError

log = logging.getLogger("pfdiff.serving")

LEFT = 499


@final
class Front:
    """The application in front of FastAPI's. A route takes the request, and gives the response."""

    def __init__(self, app: FastAPI, access: Access, metrics: Metrics) -> None:
        """app: with all its routes."""
        self._app = app
        self._access = access
        self._metrics = metrics
        routes = [route for route in app.routes if isinstance(route, APIRoute)]
        self._routes = {(method, route.path): route.endpoint for route in routes for method in route.methods or ()}
        self._paths = {route.path for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the start and the end of the server
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *HEADERS]}
            await send(message)

        self._metrics.running += 1
        try:
            answer = self._access.refusal(scope) or await self._routed(scope, receive)
            await answer(scope, receive, sending)
        except ClientDisconnect:
            status = status or LEFT
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if not status:
                await error_response(500, "internal error; the server's log says why")(scope, receive, sending)
        finally:
            self._metrics.running -= 1
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.answered(scope["method"], path, status or 500, time.perf_counter() - start)

    async def _routed(self, scope: Scope, receive: Receive) -> ASGIApp:
        """The response of the request's route; FastAPI's application where there is none."""
        route = self._routes.get((scope["method"], scope["path"]))
        if route is None:
            return self._app
        try:
            return await route(Request(scope, receive))
        except NotDrawnError as error:
            return error_response(error.status, error.message, error.retry_s)
