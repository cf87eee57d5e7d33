"""A route whose function takes the request and gives the answer, with nothing of FastAPI's in between.

FastAPI reads bodies and solves dependencies for functions that ask for them. None of ours does: bodies are bounded
before they are parsed. Leaving that out halves what a route costs a request (bench/NOTES.md).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, final

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute, APIRouter


@final
class PlainRoute(APIRoute):
    """Described in OpenAPI like every other one."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


def plain_routes(app: FastAPI) -> APIRouter:
    """The application's own routes: a router that is included would be asked for each request twice."""
    app.router.route_class = PlainRoute
    return app.router
