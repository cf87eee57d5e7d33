"""A route whose function takes the request and gives the answer, with nothing of FastAPI's in between.

FastAPI reads bodies, solves dependencies and opens stacks of contexts for functions that ask for them. None of ours
does: bodies are bounded before they are parsed. That was two thirds of what a route costs a request.
"""

from __future__ import annotations

from typing import final

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute, APIRouter
from starlette.types import Receive, Scope, Send


@final
class PlainRoute(APIRoute):
    """Described in OpenAPI like every other one."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in self.methods:
            await super().handle(scope, receive, send)  # says what is allowed
            return
        response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


def plain_routes(app: FastAPI) -> APIRouter:
    """The application's own routes: a router that is included would be asked for each request twice."""
    app.router.route_class = PlainRoute
    return app.router
