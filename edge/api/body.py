"""Reading a request's body, up to a size."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from outrider.edge.api.fields import decode
from outrider.errors import InvalidRequest


class TooLarge(InvalidRequest):
    """The body is larger than the daemon reads."""

    http_status = 413


async def read(request: Request, limit: int) -> dict[str, Any]:
    """The JSON object; a body beyond `limit` bytes is refused before it is kept."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise _too_large(limit)
    return decode(bytes(body))


def _too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"the body is larger than {limit} bytes",
        effect="the request was not read to its end",
        todo="send a shorter prompt",
    )
