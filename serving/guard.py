"""Whose requests are answered, and what an error looks like.

A server on loopback answers to loopback's names only: a page of another origin that had its own name point here (DNS
rebinding) would otherwise read the answers.
"""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass
from typing import final

from starlette.responses import Response
from starlette.types import Scope

from .routes.page import FILES, PAGES

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]", "::1"})
OPEN_PATHS = frozenset({*PAGES, *FILES, "/openapi.json", "/healthz"})
HEADERS = [
    (b"content-security-policy", b"default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
TYPES = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error"}


def error_response(status: int, message: str, retry_s: int | None = None) -> Response:
    """An error as OpenAI's clients read it."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    headers = {} if retry_s is None else {"Retry-After": str(retry_s)}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(json.dumps(body), status, headers, "application/json")


@final
@dataclass(frozen=True)
class Access:
    """api_key: without it nothing but the page and /healthz answers. loopback: refuse other names in Host."""

    api_key: str | None = None
    loopback: bool = True

    def refusal(self, scope: Scope) -> Response | None:
        """The answer to who may not ask."""
        headers = dict(scope["headers"])
        if self.loopback:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
            if name not in LOOPBACK:
                return error_response(
                    421, "this server listens on loopback and answers to localhost; start it with --host for others"
                )
        key = self.api_key
        if key is not None and scope["path"] not in OPEN_PATHS:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), key.encode()):
                return error_response(401, "an API key is needed: send 'Authorization: Bearer KEY'")
        return None
