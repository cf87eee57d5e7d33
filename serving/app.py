"""The application: engines and bounds in, ASGI out. The same one under uvicorn and under Ray Serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import numpy as np
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import HTTPException
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.types import ASGIApp

from .front import Front
from .guard import Access, error_response
from .hosts import Host
from .limits import Limits
from .metrics import Metrics
from .routes import edits, openai, page, samples
from .routes.answers import png_of
from .routes.served import Served

TITLE = "pfdiff"


def make_app(hosts: Mapping[str, Host], limits: Limits, access: Access) -> ASGIApp:
    """An ASGI application over `hosts` by name; it opens them at its start and closes them at its end."""
    metrics = Metrics(hosts)
    served = Served(hosts, limits, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for host in hosts.values():
            await host.open()
        await asyncio.to_thread(png_of, np.zeros((1, 1, 1), np.uint8))  # Pillow finds its writers at the first PNG
        yield
        for host in hosts.values():
            await host.close()

    app = FastAPI(
        title=TITLE,
        summary="Samples of diffusion models in a few network evaluations.",
        lifespan=lifespan,
        docs_url=None,  # both pages would load scripts from a foreign host; ours is /api
        redoc_url=None,
    )
    routes = app.router
    samples.add(routes, served)
    openai.add(routes, served)
    edits.add(routes, served)
    page.add(routes)
    _add_watching(routes, hosts, metrics)

    @app.exception_handler(AnyHTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        return error_response(error.status_code, f"{request.method} {request.url.path[:100]}: {error.detail}")

    return Front(app, access, metrics)


def _add_watching(routes: APIRouter, hosts: Mapping[str, Host], metrics: Metrics) -> None:
    @routes.get("/healthz", tags=["watching"], summary="200 while every engine answers, 503 with the reason if not")
    async def healthz(request: Request) -> Response:
        trouble = {name: host.trouble for name, host in hosts.items() if host.trouble}
        return JSONResponse({"status": "trouble" if trouble else "ok", **trouble}, 503 if trouble else 200)

    @routes.get("/metrics", tags=["watching"], summary="For Prometheus", response_class=Response)
    async def show(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")
