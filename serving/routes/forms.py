"""A form (multipart/form-data, RFC 7578) becomes its fields and files, in memory; names of files are not looked at."""

from __future__ import annotations

import logging
from typing import final
from urllib.parse import urlsplit

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from ..orders import NotDrawnError

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # its warnings are of clients' bytes, which get 400
MOST_PARTS = 32
MOST_FIELD_BYTES = 128 << 10  # of a text in UTF-8


def check_origin(request: Request) -> None:
    """Refuses what a browser sends for a page of another host, which a form may be. Raises NotDrawnError 403."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise NotDrawnError(403, f"a form from a page of {origin!r:.100}; pages of other hosts may send JSON alone")


@final
class _Parts:
    """What the parser tells of, part by part."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self.whole = False
        self._header = [bytearray(), bytearray()]
        self._disposition = b""
        self._data = bytearray()

    def begin(self) -> None:
        self._disposition, self._data = b"", bytearray()
        if len(self.fields) + len(self.files) >= MOST_PARTS:
            raise NotDrawnError(400, f"the form has more than {MOST_PARTS} fields")

    def header_name(self, raw: bytes, start: int, end: int) -> None:
        self._header[0] += raw[start:end]

    def header_value(self, raw: bytes, start: int, end: int) -> None:
        self._header[1] += raw[start:end]

    def header_end(self) -> None:
        name, value = map(bytes, self._header)
        if name.lower() == b"content-disposition":
            self._disposition = value
        self._header = [bytearray(), bytearray()]

    def data(self, raw: bytes, start: int, end: int) -> None:
        self._data += raw[start:end]

    def end(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode(errors="replace").removesuffix("[]")
        if name in self.fields or name in self.files:
            raise NotDrawnError(400, f"{name[:40]}: got several, expected one")
        if b"filename" in options:
            self.files[name] = bytes(self._data)
            return
        if len(self._data) > MOST_FIELD_BYTES:
            raise NotDrawnError(400, f"{name[:40]}: got {len(self._data)} bytes, expected at most {MOST_FIELD_BYTES}")
        self.fields[name] = self._data.decode(errors="replace")

    def finished(self) -> None:
        self.whole = True


def read_form(content_type: str, raw: bytes) -> tuple[dict[str, str], dict[str, bytes]]:
    """(fields, files) of a body, each name once; a list `name[]` is `name`. Raises NotDrawnError 400."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise NotDrawnError(400, "the content type names no boundary; send the form as an HTTP library makes it")
    parts = _Parts()
    callbacks = {
        "on_part_begin": parts.begin,
        "on_header_field": parts.header_name,
        "on_header_value": parts.header_value,
        "on_header_end": parts.header_end,
        "on_part_data": parts.data,
        "on_part_end": parts.end,
        "on_end": parts.finished,
    }
    try:
        MultipartParser(boundary, callbacks).write(raw)  # pyright: ignore[reportArgumentType]  # a TypedDict there
    except FormParserError:
        raise NotDrawnError(400, "the body is no form; send it as an HTTP library makes it") from None
    if not parts.whole:
        raise NotDrawnError(400, "the form ends early; send it again")
    return parts.fields, parts.files
