"""The page, its style and script, and a page that reads /openapi.json: files of this package, by fixed names."""

from __future__ import annotations

import hashlib
from pathlib import Path
from string import Template

from fastapi import APIRouter, Request
from fastapi.responses import Response

FOLDER = Path(__file__).parents[1] / "page"
PAGES = {"/": ("pfdiff", "page"), "/api": ("API · pfdiff", "api")}  # title; name of its .html in frame.html, and .js
FILES = {
    "/page.css": "text/css",
    "/page.js": "text/javascript",
    "/controls.js": "text/javascript",
    "/picture.js": "text/javascript",
    "/api.js": "text/javascript",
}


def add(routes: APIRouter) -> None:
    """One route for each file, all of them read here, once."""
    frame = Template((FOLDER / "frame.html").read_text(encoding="utf-8"))
    for path, (title, name) in PAGES.items():
        body = (FOLDER / f"{name}.html").read_text(encoding="utf-8")
        page = frame.substitute(title=title, script=f"/{name}.js", body=body)
        _add(routes, path, page.encode(), "text/html")
    for path, media in FILES.items():
        _add(routes, path, (FOLDER / path.removeprefix("/")).read_bytes(), media)


def _add(routes: APIRouter, path: str, content: bytes, media: str) -> None:
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}

    @routes.get(path, include_in_schema=False)
    async def file(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(None, 304, headers)
        return Response(content, media_type=media, headers=headers)
